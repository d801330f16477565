//! The disk behind everything durable: the file system, or a faulty one in tests and simulation.
//!
//! Journal, history, snapshots and the ledger of actions change files through here only, so whoever
//! stands in for the disk sees every operation in order and may fail, tear or forget any of them.
//! Reading goes to the file system, as does making folders.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;

/// A file being written at its end.
pub trait Output: Send {
    /// Writes all of `bytes`; on an error any part of them may be in the file.
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Makes what was written durable. After an error nothing is known of what was written since
    /// the last success, and asking again proves nothing.
    fn sync(&mut self) -> io::Result<()>;
    /// Cuts the file to `length` bytes and goes on writing there.
    fn cut(&mut self, length: u64) -> io::Result<()> {
        let _ = length;
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl Output for File {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        Write::write_all(self, bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }

    fn cut(&mut self, length: u64) -> io::Result<()> {
        self.set_len(length)?;
        self.seek(SeekFrom::Start(length)).map(drop)
    }
}

/// What is asked of a disk. What is not implemented does what the file system does.
pub trait Disk: Send + Sync {
    /// Creates or empties the file at `path`.
    fn create(&self, path: &Path) -> io::Result<Box<dyn Output>>;

    /// Opens the file at `path` for writing behind its first `length` bytes, cutting the rest.
    fn open_at(&self, path: &Path, length: u64) -> io::Result<Box<dyn Output>> {
        let mut file = OpenOptions::new().write(true).open(path)?;
        file.cut(length)?;
        Ok(Box::new(file))
    }

    /// Renames a file, replacing the one that has the name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    /// Removes a folder with everything in it.
    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }

    /// Makes the entries of a folder durable.
    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }
}

impl fmt::Debug for dyn Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Disk")
    }
}

/// The file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct FileSystem;

impl Disk for FileSystem {
    fn create(&self, path: &Path) -> io::Result<Box<dyn Output>> {
        Ok(Box::new(File::create(path)?))
    }
}
