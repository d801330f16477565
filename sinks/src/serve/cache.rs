//! Answers of one snapshot, serialised once: thousands of polls of the same question between two
//! publications cost one serialisation and one compression.

use std::collections::HashMap;
use std::io::Write;
use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;

/// Different questions remembered per snapshot; beyond it answers are made but not kept.
const ANSWERS_MAX: usize = 256;
/// Bytes remembered per snapshot.
const BYTES_MAX: usize = 16 << 20;
/// Shorter answers are not worth compressing.
const GZIP_BYTES_MIN: usize = 1_000;

/// One serialised answer.
pub(super) struct Answer {
    json: Bytes,
    gzip: OnceLock<Option<Bytes>>,
}

impl Answer {
    pub(super) fn new(json: Vec<u8>) -> Arc<Answer> {
        Arc::new(Answer { json: json.into(), gzip: OnceLock::new() })
    }

    pub(super) fn json(&self) -> Bytes {
        self.json.clone()
    }

    /// The answer compressed, when that makes it smaller.
    pub(super) fn gzip(&self) -> Option<Bytes> {
        self.gzip
            .get_or_init(|| {
                if self.json.len() < GZIP_BYTES_MIN {
                    return None;
                }
                let level = flate2::Compression::fast();
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
                // Writing to memory does not fail; an error would only mean plain bytes are sent.
                encoder.write_all(&self.json).ok()?;
                encoder.finish().ok().filter(|gzip| gzip.len() < self.json.len()).map(Bytes::from)
            })
            .clone()
    }
}

#[derive(Default)]
struct Kept {
    answers: HashMap<String, Arc<Answer>>,
    bytes: usize,
}

/// The remembered answers of one snapshot.
#[derive(Default)]
pub(super) struct AnswerCache(Mutex<Kept>);

impl AnswerCache {
    pub(super) fn get(&self, question: &str) -> Option<Arc<Answer>> {
        self.0.lock().ok()?.answers.get(question).cloned()
    }

    pub(super) fn put(&self, question: String, answer: &Arc<Answer>) {
        let Ok(mut kept) = self.0.lock() else { return };
        let bytes = kept.bytes + answer.json.len();
        if kept.answers.len() < ANSWERS_MAX && bytes <= BYTES_MAX {
            kept.bytes = bytes;
            kept.answers.insert(question, answer.clone());
        }
    }
}
