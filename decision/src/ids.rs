//! Deterministic ids, and the seed of exploration.
//!
//! Everything hashed is written in little-endian bytes with lengths before texts, so that no two
//! different inputs share an encoding. Dense entity ids are never part of it.

use omnify_operators::model::{EntityKey, Tick};

use crate::action::{Id, Setting, Status};

/// Id of an action: a function of owner, tick and desired setting (invariant 7).
pub(crate) fn action_id(owner: &EntityKey, tick: Tick, desired: &Setting) -> Id {
    let mut bytes = Bytes::new(b"omnify action");
    bytes.text(owner.as_str());
    bytes.u64(tick);
    bytes.setting(Some(desired));
    bytes.id()
}

/// Id of a decision: a function of entity, tick and policy.
pub(crate) fn decision_id(entity: &EntityKey, tick: Tick, policy: &str) -> Id {
    let mut bytes = Bytes::new(b"omnify decision");
    bytes.text(entity.as_str());
    bytes.u64(tick);
    bytes.text(policy);
    bytes.id()
}

/// A seed that is a function of (seed, entity, tick, policy): exploration draws from it.
pub(crate) fn exploration_seed(seed: u64, entity: &EntityKey, tick: Tick, policy: &str) -> u64 {
    let mut bytes = Bytes::new(b"omnify explore");
    bytes.u64(seed);
    bytes.text(entity.as_str());
    bytes.u64(tick);
    bytes.text(policy);
    let mut word = [0; 8];
    word.copy_from_slice(&bytes.id().0[..8]);
    u64::from_le_bytes(word)
}

#[derive(Clone, Debug, Default)]
struct Bytes {
    buffer: Vec<u8>,
}

impl Bytes {
    fn new(domain: &[u8]) -> Bytes {
        let mut buffer = Vec::with_capacity(160);
        buffer.extend_from_slice(domain);
        Bytes { buffer }
    }

    fn byte(&mut self, byte: u8) {
        self.buffer.push(byte);
    }

    fn u64(&mut self, value: u64) {
        self.buffer.extend_from_slice(&value.to_le_bytes());
    }

    fn i64(&mut self, value: i64) {
        self.buffer.extend_from_slice(&value.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.u64(text.len() as u64);
        self.buffer.extend_from_slice(text.as_bytes());
    }

    fn setting(&mut self, setting: Option<&Setting>) {
        match setting {
            None => self.byte(0),
            Some(Setting::Bid { bid_micros }) => {
                self.byte(1);
                self.i64(*bid_micros);
            }
            Some(Setting::Budget { budget_micros }) => {
                self.byte(2);
                self.i64(*budget_micros);
            }
            Some(Setting::Status { status }) => {
                self.byte(3);
                self.byte(u8::from(*status == Status::Enabled));
            }
            Some(Setting::Rotate { from, to }) => {
                self.byte(4);
                self.text(from.as_str());
                self.text(to.as_str());
            }
            Some(Setting::Alert { code }) => {
                self.byte(5);
                self.text(code);
            }
        }
    }

    fn id(&self) -> Id {
        let mut id = [0; 16];
        id.copy_from_slice(&blake3::hash(&self.buffer).as_bytes()[..16]);
        Id(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_depend_on_every_part() {
        let key = |text: &str| text.parse::<EntityKey>().unwrap();
        let bid = |bid_micros| Setting::Bid { bid_micros };
        let id = action_id(&key("t/p/a/c"), 1, &bid(5));
        assert_eq!(id, action_id(&key("t/p/a/c"), 1, &bid(5)));
        assert_ne!(id, action_id(&key("t/p/a/d"), 1, &bid(5)));
        assert_ne!(id, action_id(&key("t/p/a/c"), 2, &bid(5)));
        assert_ne!(id, action_id(&key("t/p/a/c"), 1, &bid(6)));
        assert_ne!(id, action_id(&key("t/p/a/c"), 1, &Setting::Budget { budget_micros: 5 }));
        assert_ne!(decision_id(&key("t"), 1, "a"), decision_id(&key("t"), 1, "b"));
    }
}
