//! One hash over all decisions in order, and the canonical bytes of a decision.
//!
//! Two runs that print the same digest made the same decisions on the same features, bit for bit:
//! every field of a decision enters, floats by their bits, entities by key. The digest is chained
//! by tick, so that it can be carried over a restart in 32 bytes.

use std::fmt;

use omnify_operators::model::{FeatureRow, Stats, Tick};

use crate::action::{Decision, Id, Prediction, Setting, Verdict};

/// Everything of a decision that enters its check and the digest.
pub struct Canonical<'a, S> {
    /// Its id.
    pub id: Id,
    /// When it was made.
    pub tick: Tick,
    /// Path of the entity.
    pub entity: &'a str,
    /// Name of the goal.
    pub goal: &'a str,
    /// Name of the policy.
    pub policy: &'a str,
    /// Version of the model.
    pub model_version: u64,
    /// What it came to.
    pub verdict: Verdict,
    /// What was wanted.
    pub proposed: Option<&'a Setting>,
    /// What was let through.
    pub granted: Option<&'a Setting>,
    /// The action emitted.
    pub action: Option<Id>,
    /// Reason codes.
    pub reasons: &'a [S],
    /// Guardrails hit.
    pub guardrails: &'a [S],
    /// Expected effect.
    pub predicted: Prediction,
    /// Probability of the choice.
    pub propensity: f64,
    /// Spend against plan.
    pub pacing_error: f64,
    /// The features.
    pub row: &'a FeatureRow,
}

impl<'a> From<&'a Decision> for Canonical<'a, &'static str> {
    fn from(decision: &'a Decision) -> Self {
        Canonical {
            id: decision.id,
            tick: decision.tick,
            entity: decision.entity.key.as_str(),
            goal: &decision.goal,
            policy: decision.policy,
            model_version: decision.model_version,
            verdict: decision.verdict,
            proposed: decision.proposed.as_ref(),
            granted: decision.granted.as_ref(),
            action: decision.action,
            reasons: &decision.reasons,
            guardrails: &decision.guardrails,
            predicted: decision.predicted,
            propensity: decision.propensity,
            pacing_error: decision.pacing_error,
            row: &decision.row,
        }
    }
}

impl<S: AsRef<str>> Canonical<'_, S> {
    /// Replaces `out` by the canonical bytes; `windows` is the number of configured windows.
    pub fn encode(&self, windows: usize, out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(&self.id.0);
        word(out, self.tick);
        text(out, self.entity);
        text(out, self.goal);
        text(out, self.policy);
        word(out, self.model_version);
        text(out, self.verdict.name());
        setting(out, self.proposed);
        setting(out, self.granted);
        out.extend_from_slice(&self.action.map_or([0; 16], |id| id.0));
        for list in [self.reasons, self.guardrails] {
            word(out, list.len() as u64);
            list.iter().for_each(|code| text(out, code.as_ref()));
        }
        let Prediction { spend_micros, value, value_low, value_high } = self.predicted;
        for number in
            [spend_micros, value, value_low, value_high, self.propensity, self.pacing_error]
        {
            word(out, number.to_bits());
        }
        features(out, self.row, windows);
    }
}

fn word(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn text(out: &mut Vec<u8>, value: &str) {
    word(out, value.len() as u64);
    out.extend_from_slice(value.as_bytes());
}

fn setting(out: &mut Vec<u8>, value: Option<&Setting>) {
    text(out, &setting_json(value).unwrap_or_default());
}

/// A setting as stored in the history.
pub fn setting_json(value: Option<&Setting>) -> Option<String> {
    // A setting holds only integers and strings, which always serialise.
    value.and_then(|setting| serde_json::to_string(setting).ok())
}

fn features(out: &mut Vec<u8>, row: &FeatureRow, windows: usize) {
    word(out, row.tick);
    for sums in &row.windows[..windows] {
        let Stats { impressions, clicks, conversions, cost_micros, revenue_micros } = *sums;
        for field in [impressions, clicks, conversions, cost_micros, revenue_micros] {
            word(out, field as u64);
        }
    }
    for estimate in [&row.ctr, &row.cvr] {
        for number in [estimate.mean, estimate.low, estimate.high] {
            word(out, number.to_bits());
        }
        word(out, estimate.successes as u64);
        word(out, estimate.trials as u64);
    }
    let fatigue = &row.fatigue;
    text(out, fatigue.state.name());
    for number in [
        row.reach.users,
        row.reach.frequency,
        fatigue.baseline_ctr,
        fatigue.ratio,
        fatigue.probability,
        fatigue.slope_per_day,
        row.anomaly.score,
    ] {
        word(out, number.to_bits());
    }
    out.push(u8::from(fatigue.days_to_onset.is_some()));
    word(out, fatigue.days_to_onset.unwrap_or_default().to_bits());
    out.push(u8::from(row.anomaly.alarm));
    // Nothing for none: rows of before there was a maturity keep their check.
    if let Some(maturity) = &row.maturity {
        out.push(u8::from(maturity.broken));
        for number in maturity.fractions() {
            word(out, number.to_bits());
        }
        word(out, maturity.fresh_us as u64);
        word(out, maturity.settled_us as u64);
    }
}

/// The running hash over decisions.
#[derive(Clone, Debug)]
pub struct DecisionDigest {
    chain: [u8; 32],
    windows: usize,
    open: blake3::Hasher,
    pending: bool,
    scratch: Vec<u8>,
}

impl DecisionDigest {
    /// The digest of no decision, for a configuration with this number of windows.
    pub fn new(windows: usize) -> DecisionDigest {
        DecisionDigest::resume(windows, [0; 32])
    }

    /// Continues from an earlier value.
    pub fn resume(windows: usize, chain: [u8; 32]) -> DecisionDigest {
        let open = blake3::Hasher::new();
        DecisionDigest { chain, windows, open, pending: false, scratch: Vec::new() }
    }

    /// Adds the next decision and returns its check (a 64-bit hash of its content).
    pub fn absorb(&mut self, decision: &Decision) -> u64 {
        self.absorb_canonical(&Canonical::from(decision))
    }

    /// [`DecisionDigest::absorb`] for a decision read back from where it was stored.
    pub fn absorb_canonical<S: AsRef<str>>(&mut self, decision: &Canonical<'_, S>) -> u64 {
        decision.encode(self.windows, &mut self.scratch);
        self.open.update(&self.scratch);
        self.pending = true;
        xxhash_rust::xxh3::xxh3_64(&self.scratch)
    }

    /// Ends a tick. A tick without decisions changes nothing.
    pub fn close_tick(&mut self) -> [u8; 32] {
        if self.pending {
            let mut hasher = blake3::Hasher::new();
            hasher.update(&self.chain);
            hasher.update(self.open.finalize().as_bytes());
            self.chain = *hasher.finalize().as_bytes();
            self.open.reset();
            self.pending = false;
        }
        self.chain
    }

    /// The value after the last closed tick.
    pub fn value(&self) -> [u8; 32] {
        self.chain
    }
}

impl fmt::Display for DecisionDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.chain))
    }
}

/// Lower-case hex digits.
pub fn hex(bytes: &[u8; 32]) -> String {
    blake3::Hash::from_bytes(*bytes).to_hex().to_string()
}

/// Reads what [`hex`] wrote.
pub fn unhex(text: &str) -> Option<[u8; 32]> {
    blake3::Hash::from_hex(text).ok().map(|hash| *hash.as_bytes())
}
