//! What can go wrong with the copy on the object store, told with the place and the remedy.

use std::io;
use std::path::{Path, PathBuf};

/// A failure of the copy.
#[derive(Debug, thiserror::Error)]
pub enum ObjectsError {
    /// The store refused or did not answer. Trying again may help.
    #[error("object store: cannot {doing} `{key}`: {source}")]
    Store {
        /// The attempt, as a verb.
        doing: &'static str,
        /// The object.
        key: String,
        /// What the store said.
        source: object_store::Error,
    },
    /// The local disk refused.
    #[error("object store: cannot {doing} `{}`: {source}", path.display())]
    Io {
        /// The attempt, as a verb.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// An object is missing, or is not what was written.
    #[error(
        "object store: `{key}` {what}; restore this object from the store's versions or a backup"
    )]
    Damaged {
        /// The object.
        key: String,
        /// What is wrong with it.
        what: String,
    },
    /// Another engine took over while this one ran.
    #[error(
        "object store: another engine ({owner}, epoch {epoch}) has taken over `{at}`, so this one \
         (epoch {ours}) stops: nothing more is taken in or acted on here. If that was not intended, \
         stop the other engine and give each its own prefix (state.remote)"
    )]
    Fenced {
        /// The prefix.
        at: String,
        /// Who holds it now.
        owner: String,
        /// Its epoch.
        epoch: u64,
        /// The lost one.
        ours: u64,
    },
    /// The prefix is the copy of another state folder.
    #[error(
        "object store: `{at}` is the copy of another state folder, last written by {owner} (epoch \
         {epoch}). To go on from there, start with an empty state.dir, which is then restored; to \
         begin anew with this folder, choose another prefix (state.remote)"
    )]
    Taken {
        /// The prefix.
        at: String,
        /// Who wrote it last.
        owner: String,
        /// The epoch.
        epoch: u64,
    },
    /// The local folder holds less than its copy.
    #[error(
        "object store: `{file}` is older than its copy in `{at}` ({what}): this state folder was put \
         back to an earlier state. Move it away and start with an empty state.dir, which is then \
         restored from the copy"
    )]
    Behind {
        /// The prefix.
        at: String,
        /// The file.
        file: String,
        /// Both sizes.
        what: String,
    },
    /// Not an address, or one that cannot be reached with this configuration.
    #[error("object store: `{address}` {what}")]
    Address {
        /// As written.
        address: String,
        /// What is wrong and what to write.
        what: String,
    },
    /// Nothing is there.
    #[error("object store: `{at}` holds {what}; check the bucket and the prefix")]
    Nothing {
        /// The prefix.
        at: String,
        /// What is missing.
        what: String,
    },
    /// Written by a program of a later version.
    #[error("object store: `{at}` was written by a later version (format {format}); use that one")]
    Newer {
        /// The prefix.
        at: String,
        /// The format.
        format: u32,
    },
}

impl ObjectsError {
    pub(super) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ObjectsError {
        let path = path.to_owned();
        move |source| ObjectsError::Io { doing, path, source }
    }

    /// True when this engine may not write there, now or ever: it must stop.
    pub fn is_fenced(&self) -> bool {
        matches!(self, ObjectsError::Fenced { .. } | ObjectsError::Taken { .. })
    }
}
