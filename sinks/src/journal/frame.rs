//! The envelope of a payload: `[marker][length][chain][check][payload]`, little endian.
//!
//! `chain` is the check of the frame before (of the header, for the first), and `check` is the xxh3
//! of length and payload seeded with `chain`. So a frame can be checked where it stands, and one
//! that was moved, lost or doubled does not fit its neighbours.
//!
//! One commit writes one or more frames; only the first has the marker [`FIRST`]. It is written
//! after everything before it became durable. So an unreadable frame with a sound
//! [`FIRST`] anywhere behind it is damage, and without one it is what a crash tore.

use xxhash_rust::xxh3::Xxh3;

/// Marker of the first frame of a commit.
const FIRST: [u8; 4] = *b"OMF1";
/// Marker of the frames behind it.
const NEXT: [u8; 4] = *b"OMFn";
/// Bytes before the payload.
pub(super) const HEAD_BYTES: usize = 24;
/// Longest payload.
pub(super) const PAYLOAD_BYTES_MAX: usize = 1 << 30;

/// `salt` is the check of the segment's header, so that a frame of another segment inside a payload
/// (somebody's dead letter) is not taken for one of this.
fn check(salt: u64, chain: u64, length: u32, payload: &[u8]) -> u64 {
    let mut hasher = Xxh3::with_seed(chain ^ salt.rotate_left(32));
    hasher.update(&length.to_le_bytes());
    hasher.update(payload);
    hasher.digest()
}

/// Appends the frame that `payload` writes, which must be at most [`PAYLOAD_BYTES_MAX`] long;
/// returns its check.
pub(super) fn write(
    out: &mut Vec<u8>,
    first: bool,
    (salt, chain): (u64, u64),
    payload: impl FnOnce(&mut Vec<u8>),
) -> u64 {
    let start = out.len();
    out.resize(start + HEAD_BYTES, 0);
    payload(out);
    let (head, payload) = out[start..].split_at_mut(HEAD_BYTES);
    let length = payload.len() as u32;
    let check = check(salt, chain, length, payload);
    head[..4].copy_from_slice(if first { &FIRST } else { &NEXT });
    head[4..8].copy_from_slice(&length.to_le_bytes());
    head[8..16].copy_from_slice(&chain.to_le_bytes());
    head[16..].copy_from_slice(&check.to_le_bytes());
    check
}

/// The head of a frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    pub(super) length: usize,
    pub(super) chain: u64,
    pub(super) check: u64,
}

impl Head {
    /// Reads a head; `None` when these bytes are none.
    pub(super) fn read(bytes: &[u8]) -> Option<Head> {
        let (marker, rest) = bytes.split_first_chunk::<4>()?;
        let (length, rest) = rest.split_first_chunk()?;
        let (chain, rest) = rest.split_first_chunk()?;
        let check = rest.first_chunk()?;
        let length = u32::from_le_bytes(*length) as usize;
        ((*marker == FIRST || *marker == NEXT) && length <= PAYLOAD_BYTES_MAX).then(|| Head {
            length,
            chain: u64::from_le_bytes(*chain),
            check: u64::from_le_bytes(*check),
        })
    }

    /// True when `payload` is what was written.
    pub(super) fn fits(&self, salt: u64, payload: &[u8]) -> bool {
        check(salt, self.chain, self.length as u32, payload) == self.check
    }
}

/// Where a sound first frame of a commit begins in `bytes`, beyond its first byte.
pub(super) fn find_first(salt: u64, bytes: &[u8]) -> Option<usize> {
    let starts = bytes.windows(FIRST.len()).enumerate().skip(1);
    starts.filter(|(_, window)| *window == FIRST).map(|(at, _)| at).find(|at| {
        let head = Head::read(&bytes[*at..]);
        head.is_some_and(|head| {
            let start = at + HEAD_BYTES;
            let payload = bytes.get(start..start + head.length);
            payload.is_some_and(|payload| head.fits(salt, payload))
        })
    })
}
