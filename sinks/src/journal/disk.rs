//! The disk behind the journal: the file system, or a faulty one in tests and simulation.

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
    fn cut(&mut self, length: u64) -> io::Result<()>;
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

/// What the journal asks of a disk.
pub trait Disk: Send {
    /// Creates or empties the file at `path`.
    fn create(&self, path: &Path) -> io::Result<Box<dyn Output>>;
    /// Opens the file at `path` for writing behind its first `length` bytes, cutting the rest.
    fn open_at(&self, path: &Path, length: u64) -> io::Result<Box<dyn Output>>;
    /// Renames a file, replacing the one that has the name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes the entries of a folder durable.
    fn sync_folder(&self, path: &Path) -> io::Result<()>;
}

/// The file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct FileSystem;

impl Disk for FileSystem {
    fn create(&self, path: &Path) -> io::Result<Box<dyn Output>> {
        Ok(Box::new(File::create(path)?))
    }

    fn open_at(&self, path: &Path, length: u64) -> io::Result<Box<dyn Output>> {
        let mut file = OpenOptions::new().write(true).open(path)?;
        file.cut(length)?;
        Ok(Box::new(file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }
}
