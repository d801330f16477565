//! Deterministic ids, and the digest that says whether two runs decided the same.
//!
//! Everything hashed is written in little-endian bytes with lengths before texts, so that no two
//! different decisions share an encoding. Dense entity ids are never part of it.

use omnify_operators::model::{EntityKey, FeatureRow, Stats, Tick};

use crate::action::{Decision, Id, Setting, Status};

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

/// BLAKE3 over every decision of a run, in order.
#[derive(Clone, Debug, Default)]
pub struct Digest {
    hasher: blake3::Hasher,
    bytes: Bytes,
    decisions: u64,
}

impl Digest {
    /// An empty digest.
    pub fn new() -> Digest {
        Digest::default()
    }

    /// Adds the next decision.
    pub fn push(&mut self, decision: &Decision) {
        let bytes = &mut self.bytes;
        bytes.buffer.clear();
        bytes.u64(decision.tick);
        bytes.text(decision.entity.key.as_str());
        bytes.text(decision.policy);
        bytes.text(&decision.goal);
        bytes.u64(decision.model_version);
        bytes.byte(decision.verdict as u8);
        bytes.setting(decision.proposed.as_ref());
        bytes.setting(decision.granted.as_ref());
        match decision.action {
            Some(id) => bytes.buffer.extend_from_slice(&id.0),
            None => bytes.byte(0),
        }
        bytes.codes(&decision.reasons);
        bytes.codes(&decision.guardrails);
        bytes.u64(decision.propensity.to_bits());
        bytes.row(&decision.row);
        self.hasher.update(&bytes.buffer);
        self.decisions += 1;
    }

    /// Decisions added so far.
    pub fn decisions(&self) -> u64 {
        self.decisions
    }

    /// The digest of all decisions added so far, as 64 hex digits; more may be added after.
    pub fn finish_hex(&self) -> String {
        self.hasher.finalize().to_hex().to_string()
    }
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

    fn codes(&mut self, codes: &[&str]) {
        self.u64(codes.len() as u64);
        codes.iter().for_each(|code| self.text(code));
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

    fn row(&mut self, row: &FeatureRow) {
        self.u64(row.tick);
        for Stats { impressions, clicks, conversions, cost_micros, revenue_micros } in &row.windows
        {
            for value in [impressions, clicks, conversions, cost_micros, revenue_micros] {
                self.i64(*value);
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
