//! A disk that is full for a while: a small file system of memory, which the harness fills.
//!
//! Mounting needs a right that only root has, or a user in name spaces of its own. So the harness
//! starts itself once more inside a mount name space ([`in_own_namespace`]); nothing it mounts is
//! seen outside, and all of it goes when it ends. Where that is refused the rounds are not run, and
//! counted so.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

/// Set in the process inside the name space.
const INSIDE: &str = "OMNIFY_CRASH_INSIDE";
/// Room beside what is there already.
const ROOM_BYTES: u64 = 24 << 20;
/// What is written at once; no room for less is full.
const FILL_BYTES: usize = 4_096;
const FILL_FAST_BYTES: usize = 1 << 20;
/// The file that fills it.
const BALLAST: &str = "ballast";

/// Starts this program again, with the same arguments, inside a mount name space; returns when it is
/// inside already, or when the system does not let it.
pub fn in_own_namespace() {
    if std::env::var_os(INSIDE).is_some() {
        return;
    }
    let Ok(program) = std::env::current_exe() else { return };
    let (place, arguments) = (std::env::temp_dir(), std::env::args_os().skip(1));
    for flags in [&["--mount"][..], &["--map-root-user", "--mount"]] {
        let unshare = || {
            let mut unshare = Command::new("unshare");
            unshare.args(flags).args(["--propagation", "private"]);
            unshare
        };
        let tried = unshare().args(["mount", "-t", "tmpfs", "tmpfs"]).arg(&place).output();
        if tried.is_ok_and(|tried| tried.status.success()) {
            let error = unshare().arg(&program).args(arguments).env(INSIDE, "1").exec();
            eprintln!("no name space of one's own: {error}");
            return;
        }
    }
}

/// A small file system, until it is dropped.
pub(super) struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    /// Whether one can be mounted.
    pub(super) fn is_possible() -> bool {
        std::env::var_os(INSIDE).is_some()
    }

    /// Mounts one at the new folder `at`, with everything of `from` in it.
    pub(super) fn holding(from: &Path, at: PathBuf) -> anyhow::Result<SmallDisk> {
        ensure!(SmallDisk::is_possible(), "only in a name space of one's own");
        fs::create_dir_all(&at)?;
        // In the first round nothing is there yet.
        fs::create_dir_all(from)?;
        let size = format!("size={}", used_bytes(from)? + ROOM_BYTES);
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&at).status();
        ensure!(mounted?.success(), "no file system at {}", at.display());
        let disk = SmallDisk { at };
        copy(from, &disk.at)?;
        Ok(disk)
    }

    /// Takes whatever room there is.
    pub(super) fn fill(&self) -> anyhow::Result<()> {
        let path = self.at.join(BALLAST);
        let mut file = File::options().create(true).append(true).open(&path)?;
        for bytes in [FILL_FAST_BYTES, FILL_BYTES] {
            let zeros = vec![0; bytes];
            while file.write_all(&zeros).is_ok() {}
        }
        Ok(())
    }

    /// Gives it back.
    pub(super) fn free(&self) -> anyhow::Result<()> {
        fs::remove_file(self.at.join(BALLAST)).context("the ballast")
    }

    /// Puts everything back to `to`, in place of what was there.
    pub(super) fn move_to(self, to: &Path) -> anyhow::Result<()> {
        if to.exists() {
            fs::remove_dir_all(to)?;
        }
        fs::create_dir_all(to)?;
        copy(&self.at, to)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let gone = Command::new("umount").arg(&self.at).status();
        if !gone.is_ok_and(|status| status.success()) {
            eprintln!("{} stays mounted until the harness ends", self.at.display());
        }
    }
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            fs::create_dir(&target)?;
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

fn used_bytes(folder: &Path) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        bytes += match entry.file_type()?.is_dir() {
            true => used_bytes(&entry.path())?,
            // In pages.
            false => entry.metadata()?.len().next_multiple_of(4_096),
        };
    }
    Ok(bytes)
}
