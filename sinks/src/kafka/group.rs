//! The messages of a group of ticks, and what is known of those that the brokers do not take.

use std::collections::{BTreeMap, BTreeSet};

use rdkafka::error::RDKafkaErrorCode as Code;

use super::message;
use super::outputs::OutputOptions;
use super::refusal::{Refusal, Scope, scope};
use super::select::TickOutputs;

/// A message on its way out.
pub(super) struct Out {
    pub(super) topic: String,
    pub(super) key: String,
    pub(super) value: Vec<u8>,
    pub(super) schema: &'static str,
}

impl Out {
    pub(super) fn new(topic: &str, key: String, value: Vec<u8>, schema: &'static str) -> Out {
        Out { topic: topic.to_owned(), key, value, schema }
    }
}

/// What to do with a message.
pub(super) enum Step<'a> {
    Send(&'a Out),
    /// In a batch of its own: one of those it was refused with is to blame.
    Alone(&'a Out),
    /// It is refused: a copy goes to the dead-letter topic.
    Copy(&'a Out, &'a Refusal),
    /// It is refused, and so was its copy.
    Nothing,
}

/// See the module.
pub(super) struct Group {
    outs: Vec<Out>,
    /// Refused together with others.
    suspects: BTreeSet<usize>,
    /// By number.
    refused: BTreeMap<usize, Refusal>,
    /// Refused whose copies are refused as well.
    uncopied: BTreeSet<usize>,
}

/// Numbers from here on are of copies.
const COPIES: usize = 1 << 32;

impl Group {
    pub(super) fn new(options: &OutputOptions, windows: &[String], ticks: &[TickOutputs]) -> Group {
        let mut outs = Vec::new();
        for outputs in ticks {
            if let Some(topic) = &options.features_topic {
                outs.extend(outputs.features.iter().map(|(info, row)| {
                    // Numbers that have no form in JSON become null, so this always has one.
                    let value = message::feature(info, row, windows).unwrap_or_default();
                    Out::new(topic, info.key.to_string(), value, "omnify.feature/1")
                }));
            }
            if let Some(topic) = &options.alerts_topic {
                outs.extend(outputs.alerts.iter().map(|alert| {
                    let value = serde_json::to_vec(alert).unwrap_or_default();
                    Out::new(topic, alert.key().to_owned(), value, "omnify.alert/1")
                }));
            }
        }
        let (suspects, refused) = (BTreeSet::new(), BTreeMap::new());
        Group { outs, suspects, refused, uncopied: BTreeSet::new() }
    }

    /// How many messages there are.
    pub(super) fn len(&self) -> usize {
        self.outs.len()
    }

    /// Those that were set aside.
    pub(super) fn refusals(&self) -> std::collections::btree_map::Values<'_, usize, Refusal> {
        self.refused.values()
    }

    /// What is to be done with a message in this try.
    pub(super) fn step(&self, number: usize) -> Step<'_> {
        let out = &self.outs[number];
        match self.refused.get(&number) {
            Some(_) if self.uncopied.contains(&number) => Step::Nothing,
            Some(refusal) => Step::Copy(out, refusal),
            None if self.suspects.contains(&number) => Step::Alone(out),
            None => Step::Send(out),
        }
    }

    /// The number of a message's copy.
    pub(super) const fn copy_of(number: usize) -> usize {
        COPIES + number
    }

    /// Message or copy `number` did not arrive because of `code`; true when the next try will be
    /// another one because of it.
    pub(super) fn refuse(&mut self, number: usize, code: Code) -> bool {
        let Some(scope) = scope(code) else { return false };
        if let Some(number) = number.checked_sub(COPIES) {
            return number < self.outs.len() && self.uncopied.insert(number);
        }
        let Some(out) = self.outs.get(number) else { return false };
        match scope {
            Scope::Topic => {
                let topic = out.topic.clone();
                let of_topic = self.outs.iter().enumerate().filter(|(_, out)| out.topic == topic);
                let before = self.refused.len();
                for (number, out) in of_topic {
                    self.refused.entry(number).or_insert_with(|| Refusal::of(out, code));
                }
                self.refused.len() > before
            }
            // Refused alone: it is the one.
            Scope::Message if self.suspects.contains(&number) => {
                let refusal = Refusal::of(out, code);
                self.refused.insert(number, refusal).is_none()
            }
            Scope::Message => self.suspects.insert(number),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::Alert;

    /// Three alerts.
    fn group() -> Group {
        let mut options = OutputOptions::at("none");
        options.alerts_topic = Some("alerts".to_owned());
        let alert = |tick| Alert::of("code", tick, None, "text".to_owned());
        let alerts = (1..=3).map(alert).collect();
        let outputs = TickOutputs { tick: 3, alerts, ..TickOutputs::default() };
        Group::new(&options, &[], &[outputs])
    }

    fn steps(group: &Group) -> String {
        let name = |number| match group.step(number) {
            Step::Send(_) => 's',
            Step::Alone(_) => 'a',
            Step::Copy(..) => 'c',
            Step::Nothing => '-',
        };
        (0..group.len()).map(name).collect()
    }

    #[test]
    fn who_is_refused_with_others_is_tried_alone_and_set_aside_only_then() {
        let mut group = group();
        assert_eq!(steps(&group), "sss");
        assert!(!group.refuse(0, Code::NotEnoughReplicas), "this passes");
        assert!(group.refuse(0, Code::MessageSizeTooLarge));
        assert!(group.refuse(1, Code::MessageSizeTooLarge));
        assert_eq!(steps(&group), "aas");
        assert!(group.refuse(1, Code::MessageSizeTooLarge));
        assert_eq!(steps(&group), "acs");
        assert_eq!(group.refusals().count(), 1);
        // The copy is refused as well; what is known is no news.
        assert!(group.refuse(Group::copy_of(1), Code::MessageSizeTooLarge));
        assert_eq!(steps(&group), "a-s");
        assert!(!group.refuse(Group::copy_of(1), Code::MessageSizeTooLarge));
        assert!(!group.refuse(usize::MAX, Code::MessageSizeTooLarge), "the record of ticks");
    }

    #[test]
    fn a_topic_is_refused_as_a_whole() {
        let mut group = group();
        assert!(group.refuse(2, Code::TopicAuthorizationFailed));
        assert_eq!(steps(&group), "ccc");
        assert!(!group.refuse(0, Code::TopicAuthorizationFailed));
        let why = group.refusals().next().unwrap().to_string();
        assert!(why.contains("alerts") && why.contains("code"), "{why}");
    }
}
