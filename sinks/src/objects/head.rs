//! The head: which objects make up the copy now.
//!
//! One small JSON document behind a line with its BLAKE3. It names every file that is copied, by its
//! path below the state folder or the folder of histories, with the objects that hold it. Files that
//! a manifest lists (chunks of a snapshot, parts of a history) are not repeated: they lie beside the
//! object of their manifest, which has their sizes and hashes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::ObjectsError;

/// First part of the names of the journal's segments.
pub const JOURNAL: &str = "journal";
/// First part of the names of the ledger's segments.
pub const LEDGER: &str = "ledger";
/// First part of the names of snapshots' manifests.
pub const SNAPSHOTS: &str = "snapshots";
/// First part of the names of histories' files.
pub const HISTORY: &str = "history";

const FORMAT: u32 = 1;

/// A run of bytes of a file, as an object that never changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// The object, below the prefix.
    pub key: String,
    /// Its bytes.
    pub bytes: u64,
    /// Its BLAKE3, hex.
    pub blake3: String,
    /// How often pieces were merged into it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub level: u8,
}

fn is_zero(level: &u8) -> bool {
    *level == 0
}

impl Piece {
    /// The place of the object, `/` at its end.
    pub fn folder(&self) -> &str {
        self.key.rfind('/').map_or("", |at| &self.key[..=at])
    }
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    pub(super) format: u32,
    /// Rises with every start.
    pub epoch: u64,
    /// Heads written ever.
    pub number: u64,
    /// The state folder that this is the copy of.
    pub folder: String,
    /// The process that holds the epoch, for people.
    pub owner: String,
    /// Whether everything that was acknowledged or acted on is here (`state.acknowledge = "mirror"`).
    pub strict: bool,
    /// The history being written.
    pub run: Option<String>,
    /// Every file and the pieces that make it up, in order.
    pub files: BTreeMap<String, Vec<Piece>>,
}

impl Head {
    /// Of a new copy.
    pub fn new() -> Head {
        Head { format: FORMAT, ..Head::default() }
    }

    /// The files whose name begins with `group`, and the rest of their names.
    pub fn group<'a>(
        &'a self,
        group: &'a str,
    ) -> impl DoubleEndedIterator<Item = (&'a str, &'a [Piece])> {
        let of = move |name: &'a String| name.strip_prefix(group)?.strip_prefix('/');
        self.files.iter().filter_map(move |(name, pieces)| Some((of(name)?, pieces.as_slice())))
    }

    /// Snapshots by their tick, oldest first, with the object of their manifest.
    pub fn snapshots(&self) -> Vec<(u64, &Piece)> {
        let tick = |name: &str| name.split_once('/')?.0.parse().ok();
        self.group(SNAPSHOTS).filter_map(|(name, pieces)| tick(name).zip(pieces.first())).collect()
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        // Strings, numbers and string keys only: encoding cannot fail.
        let json = serde_json::to_vec(self).expect("a head is plain JSON");
        let mut bytes = format!("{}\n", blake3::hash(&json).to_hex()).into_bytes();
        bytes.extend_from_slice(&json);
        bytes
    }

    pub(super) fn of_bytes(at: &str, bytes: &[u8]) -> Result<Head, ObjectsError> {
        let damaged = |what: String| ObjectsError::Damaged { key: format!("{at}/head.json"), what };
        let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(0);
        let (check, json) = (&bytes[..end], &bytes[(end + 1).min(bytes.len())..]);
        if blake3::hash(json).to_hex().as_bytes() != check {
            return Err(damaged("fails its checksum".to_owned()));
        }
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let bad = |error: serde_json::Error| damaged(format!("is no head: {error}"));
        let Format { format } = serde_json::from_slice(json).map_err(bad)?;
        if format > FORMAT {
            return Err(ObjectsError::Newer { at: at.to_owned(), format });
        }
        serde_json::from_slice(json).map_err(bad)
    }
}
