//! Holding the epoch: the right to replace the head.

use super::{Head, ObjectsError, Piece, Remote};
use crate::objects::remote::Seen;

/// Others may replace the head meanwhile; who loses this often in a row gives up.
const TRIES: usize = 8;

/// Who takes an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Names the state folder, and no other one.
    pub folder: String,
    /// Names this process and start, for people and to know one's own head again.
    pub name: String,
    /// Nothing is acknowledged or acted on that is not in the copy.
    pub strict: bool,
}

/// A change of the head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The file consists of these pieces now.
    Set(String, Vec<Piece>),
    /// The file has grown by a piece.
    Append(String, Piece),
    /// These neighbours of the file are this one piece now.
    Merge(String, Vec<String>, Piece),
    /// The file is gone.
    Remove(String),
    /// This history is the one being written.
    Run(String),
}

/// The right to replace the head, until another start takes it.
#[derive(Debug)]
pub struct Claim {
    remote: Remote,
    owner: Owner,
    head: Head,
    seen: Seen,
}

impl Claim {
    /// Takes the next epoch; whoever held the one before can commit nothing more. A copy of another
    /// folder is refused, unless it is to be taken over.
    pub async fn take(
        remote: &Remote,
        owner: Owner,
        take_over: bool,
    ) -> Result<Claim, ObjectsError> {
        for _ in 0..TRIES {
            let (before, seen) = remote.head().await?.unwrap_or_else(|| (Head::new(), None));
            if seen.is_some() && !take_over && before.folder != owner.folder {
                let at = remote.name().to_owned();
                return Err(ObjectsError::Taken { at, owner: before.owner, epoch: before.epoch });
            }
            let head = Head {
                epoch: before.epoch + 1,
                number: before.number + 1,
                folder: owner.folder.clone(),
                owner: owner.name.clone(),
                strict: before.strict && owner.strict,
                ..before
            };
            let replaced = match remote.replace_head(&head, &seen).await? {
                Some(seen) => Some(seen),
                // Somebody was faster, or this is ours and its reply was lost.
                None => remote.head().await?.filter(|(now, _)| *now == head).map(|(_, seen)| seen),
            };
            if let Some(seen) = replaced {
                return Ok(Claim { remote: remote.clone(), owner, head, seen });
            }
        }
        let at = remote.name().to_owned();
        Err(ObjectsError::Nothing { at, what: "a head that changes all the time".to_owned() })
    }

    /// The head as it was committed last.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// The store.
    pub fn remote(&self) -> &Remote {
        &self.remote
    }

    /// Replaces the head by one with these changes; returns the objects that no head lists any more.
    /// `all` says that the copy is then complete as of some moment after the claim. After an error of
    /// the store the same changes can be committed again, alone or with more.
    pub async fn commit(
        &mut self,
        changes: &[Change],
        all: bool,
    ) -> Result<Vec<String>, ObjectsError> {
        let mut next = self.head.clone();
        next.number += 1;
        if all {
            next.strict = self.owner.strict;
        }
        let mut retired = Vec::new();
        changes.iter().for_each(|change| apply(&mut next, change, &mut retired));
        for _ in 0..TRIES {
            if let Some(seen) = self.remote.replace_head(&next, &self.seen).await? {
                (self.head, self.seen) = (next, seen);
                return Ok(retired);
            }
            // It is not the one we saw: another's, or our own, whose reply was lost.
            let (now, seen) = self.remote.head().await?.unwrap_or_default();
            if now.epoch != self.head.epoch || now.owner != self.owner.name {
                return Err(ObjectsError::Fenced {
                    at: self.remote.name().to_owned(),
                    owner: now.owner,
                    epoch: now.epoch,
                    ours: self.head.epoch,
                });
            }
            self.seen = seen;
            if now == next {
                self.head = next;
                return Ok(retired);
            }
        }
        let at = self.remote.name().to_owned();
        Err(ObjectsError::Nothing { at, what: "a head that changes all the time".to_owned() })
    }
}

/// Changes `head`; adds what it no longer lists to `retired`.
fn apply(head: &mut Head, change: &Change, retired: &mut Vec<String>) {
    match change {
        Change::Set(name, pieces) => {
            let before = head.files.insert(name.clone(), pieces.clone()).unwrap_or_default();
            let gone = before.into_iter().filter(|old| pieces.iter().all(|new| new.key != old.key));
            retired.extend(gone.map(|piece| piece.key));
        }
        Change::Append(name, piece) => {
            head.files.entry(name.clone()).or_default().push(piece.clone());
        }
        Change::Merge(name, keys, piece) => {
            let pieces = head.files.get_mut(name);
            let place = pieces.and_then(|pieces| {
                let same = |run: &[Piece]| run.iter().map(|piece| &piece.key).eq(keys);
                let at = pieces.windows(keys.len().max(1)).position(same)?;
                Some((pieces, at))
            });
            match place {
                Some((pieces, at)) => {
                    let old = pieces.splice(at..at + keys.len(), [piece.clone()]);
                    retired.extend(old.map(|piece| piece.key));
                }
                // The file was removed meanwhile.
                None => retired.push(piece.key.clone()),
            }
        }
        Change::Remove(name) => {
            let before = head.files.remove(name).unwrap_or_default();
            retired.extend(before.into_iter().map(|piece| piece.key));
        }
        Change::Run(run) => head.run = Some(run.clone()),
    }
}
