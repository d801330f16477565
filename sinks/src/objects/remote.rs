//! A prefix of an object store: whole objects in, checked objects out, and the head replaced only
//! where it is the one that was seen.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::{Path as Key, PathPart};
use object_store::{
    Error, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, UpdateVersion,
    WriteMultipart,
};
use rustix::fs::{FlockOperation, flock};

use super::{Head, ObjectsError, Piece};

/// Larger files go in parts of this size, so that none is held in memory as a whole.
const PART_BYTES: usize = 8 << 20;
/// Parts of one file on their way at once.
const PARTS_AT_ONCE: usize = 4;
const HEAD: &str = "head.json";
/// Looks at the lock of a folder, and the wait between two.
const LOCK_TRIES: u32 = 2_000;
const LOCK_RETRY: Duration = Duration::from_millis(5);

/// See the module.
#[derive(Clone, Debug)]
pub struct Remote {
    store: Arc<dyn ObjectStore>,
    prefix: Key,
    /// For people.
    name: String,
    /// A folder knows no conditional replacement: this file is locked meanwhile.
    lock: Option<PathBuf>,
}

/// What a head was when it was seen; `None` where there was none.
pub(super) type Seen = Option<UpdateVersion>;

impl Remote {
    /// `prefix` of `store`, called `name` in messages.
    pub fn new(store: Arc<dyn ObjectStore>, prefix: &str, name: &str) -> Remote {
        Remote { store, prefix: Key::from(prefix), name: name.to_owned(), lock: None }
    }

    /// The same on a folder of this machine, or of several that lock files together.
    pub(super) fn on_folder(store: Arc<dyn ObjectStore>, folder: &Path, name: &str) -> Remote {
        let lock = Some(folder.join("head.lock"));
        Remote { store, prefix: Key::default(), name: name.to_owned(), lock }
    }

    /// How messages call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn key(&self, key: &str) -> Key {
        // Parts of histories have names that are escaped already.
        let parsed = |part| PathPart::parse(part).unwrap_or_else(|_| PathPart::from(part));
        self.prefix.parts().chain(key.split('/').map(parsed)).collect()
    }

    fn failed(&self, doing: &'static str, key: &str) -> impl FnOnce(Error) -> ObjectsError {
        let key = format!("{}/{key}", self.name);
        move |source| ObjectsError::Store { doing, key, source }
    }

    fn damaged(&self, key: &str, what: impl Into<String>) -> ObjectsError {
        ObjectsError::Damaged { key: format!("{}/{key}", self.name), what: what.into() }
    }

    /// Writes an object.
    pub async fn put(&self, key: &str, bytes: Bytes) -> Result<Piece, ObjectsError> {
        let piece = Piece {
            key: key.to_owned(),
            bytes: bytes.len() as u64,
            blake3: blake3::hash(&bytes).to_hex().to_string(),
            level: 0,
        };
        let put = self.store.put(&self.key(key), bytes.into()).await;
        put.map(|_| piece).map_err(self.failed("write", key))
    }

    /// Writes the file at `path` as an object. Where size and hash are `expected`, a file that differs
    /// is damage and is not written.
    pub async fn put_file(
        &self,
        key: &str,
        path: &Path,
        expected: Option<(u64, &str)>,
    ) -> Result<Piece, ObjectsError> {
        let read = || ObjectsError::io("read", path);
        let mut file = File::open(path).map_err(read())?;
        let length = file.metadata().map_err(read())?.len();
        if length <= PART_BYTES as u64 {
            let mut bytes = Vec::with_capacity(length as usize);
            file.read_to_end(&mut bytes).map_err(read())?;
            check(path, &blake3::hash(&bytes), bytes.len() as u64, expected)?;
            return self.put(key, bytes.into()).await;
        }
        let upload = self.store.put_multipart(&self.key(key)).await;
        let upload = upload.map_err(self.failed("write", key))?;
        let mut upload = WriteMultipart::new_with_chunk_size(upload, PART_BYTES);
        let sent = self.send(&mut upload, &mut file, key, path, expected).await;
        match sent {
            Ok(piece) => {
                upload.finish().await.map_err(self.failed("write", key))?;
                Ok(piece)
            }
            Err(error) => {
                // Best effort: the store removes parts that belong to nothing by its own rules.
                let _ = upload.abort().await;
                Err(error)
            }
        }
    }

    async fn send(
        &self,
        upload: &mut WriteMultipart,
        file: &mut File,
        key: &str,
        path: &Path,
        expected: Option<(u64, &str)>,
    ) -> Result<Piece, ObjectsError> {
        let (mut hasher, mut bytes) = (blake3::Hasher::new(), 0);
        loop {
            let mut part = Vec::with_capacity(PART_BYTES);
            let count = Read::by_ref(file).take(PART_BYTES as u64).read_to_end(&mut part);
            let count = count.map_err(ObjectsError::io("read", path))?;
            if count == 0 {
                break;
            }
            hasher.update(&part);
            bytes += count as u64;
            let room = upload.wait_for_capacity(PARTS_AT_ONCE).await;
            room.map_err(self.failed("write", key))?;
            upload.put(part.into());
        }
        let hash = hasher.finalize();
        check(path, &hash, bytes, expected)?;
        Ok(Piece { key: key.to_owned(), bytes, blake3: hash.to_hex().to_string(), level: 0 })
    }

    /// The object of `piece`, compared with what was written.
    pub async fn get(&self, piece: &Piece) -> Result<Bytes, ObjectsError> {
        let found = match self.store.get(&self.key(&piece.key)).await {
            Err(Error::NotFound { .. }) => return Err(self.damaged(&piece.key, "is missing")),
            found => found.map_err(self.failed("read", &piece.key))?,
        };
        let bytes = found.bytes().await.map_err(self.failed("read", &piece.key))?;
        if bytes.len() as u64 != piece.bytes {
            let what = format!("has {} bytes, {} were written", bytes.len(), piece.bytes);
            return Err(self.damaged(&piece.key, what));
        }
        if blake3::hash(&bytes).to_hex().as_str() != piece.blake3 {
            return Err(self.damaged(&piece.key, "fails its checksum"));
        }
        Ok(bytes)
    }

    /// Writes the object of `piece` to `path`, compared on the way with what was written. A file that
    /// fails is removed.
    pub async fn get_file(&self, piece: &Piece, path: &Path) -> Result<(), ObjectsError> {
        let fetched = self.stream(piece, path).await;
        if fetched.is_err() {
            let _ = fs::remove_file(path);
        }
        fetched
    }

    async fn stream(&self, piece: &Piece, path: &Path) -> Result<(), ObjectsError> {
        let failed = || self.failed("read", &piece.key);
        let found = match self.store.get(&self.key(&piece.key)).await {
            Err(Error::NotFound { .. }) => return Err(self.damaged(&piece.key, "is missing")),
            found => found.map_err(failed())?,
        };
        let write = || ObjectsError::io("write", path);
        let mut file = File::create(path).map_err(write())?;
        let (mut hasher, mut bytes) = (blake3::Hasher::new(), 0);
        let mut stream = found.into_stream();
        while let Some(data) = stream.try_next().await.map_err(failed())? {
            hasher.update(&data);
            bytes += data.len() as u64;
            file.write_all(&data).map_err(write())?;
        }
        if bytes != piece.bytes {
            let what = format!("has {bytes} bytes, {} were written", piece.bytes);
            return Err(self.damaged(&piece.key, what));
        }
        if hasher.finalize().to_hex().as_str() != piece.blake3 {
            return Err(self.damaged(&piece.key, "fails its checksum"));
        }
        file.sync_all().map_err(write())
    }

    /// The head, if there is one, and as what it was seen.
    pub(super) async fn head(&self) -> Result<Option<(Head, Seen)>, ObjectsError> {
        let found = match self.store.get(&self.key(HEAD)).await {
            Err(Error::NotFound { .. }) => return Ok(None),
            found => found.map_err(self.failed("read", HEAD))?,
        };
        let seen =
            UpdateVersion { e_tag: found.meta.e_tag.clone(), version: found.meta.version.clone() };
        let bytes = found.bytes().await.map_err(self.failed("read", HEAD))?;
        Ok(Some((Head::of_bytes(&self.name, &bytes)?, Some(seen))))
    }

    /// The head, which must be there: for readers.
    pub async fn read_head(&self) -> Result<Head, ObjectsError> {
        let head = self.head().await?.ok_or_else(|| ObjectsError::Nothing {
            at: self.name.clone(),
            what: "no copy of an engine (head.json)".to_owned(),
        })?;
        Ok(head.0)
    }

    /// Replaces the head that was `seen`; `None` when it is another one by now.
    pub(super) async fn replace_head(
        &self,
        head: &Head,
        seen: &Seen,
    ) -> Result<Option<Seen>, ObjectsError> {
        let _lock = match &self.lock {
            Some(path) => Some(lock(path).await?),
            None => None,
        };
        let mut mode = seen.clone().map_or(PutMode::Create, PutMode::Update);
        if let (Some(_), Some(seen)) = (&self.lock, seen) {
            let now = self.store.head(&self.key(HEAD)).await;
            if now.map_err(self.failed("read", HEAD))?.e_tag != seen.e_tag {
                return Ok(None);
            }
            mode = PutMode::Overwrite;
        }
        let options = PutOptions { mode, ..PutOptions::default() };
        match self.store.put_opts(&self.key(HEAD), head.to_bytes().into(), options).await {
            Ok(put) => Ok(Some(Some(put.into()))),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(None),
            Err(error) => Err(self.failed("write", HEAD)(error)),
        }
    }

    /// Everything in `folder` ("" is all), in no order, as (key below the prefix, what the store says).
    pub(super) async fn list(
        &self,
        folder: &str,
    ) -> Result<Vec<(String, ObjectMeta)>, ObjectsError> {
        let folder = folder.trim_end_matches('/');
        let at = if folder.is_empty() { self.prefix.clone() } else { self.key(folder) };
        let all: Result<Vec<ObjectMeta>, _> = self.store.list(Some(&at)).try_collect().await;
        let all = all.map_err(self.failed("list", folder))?;
        let below = |meta: ObjectMeta| {
            let parts: Vec<_> = meta.location.prefix_match(&self.prefix)?.collect();
            let parts: Vec<&str> = parts.iter().map(AsRef::as_ref).collect();
            Some((parts.join("/"), meta))
        };
        Ok(all.into_iter().filter_map(below).collect())
    }

    /// Deletes objects, and whole folders where a key ends with `/`; what is gone already is no
    /// failure. Returns how many could not be deleted.
    pub async fn delete(&self, keys: &[String]) -> usize {
        let mut all = Vec::new();
        for key in keys {
            match key.ends_with('/') {
                false => all.push(key.clone()),
                true => match self.list(key).await {
                    Ok(listed) => all.extend(listed.into_iter().map(|(key, _)| key)),
                    Err(error) => tracing::debug!(%error, "a folder waits for a later start"),
                },
            }
        }
        let mut failed = 0;
        for key in &all {
            match self.store.delete(&self.key(key)).await {
                Ok(()) | Err(Error::NotFound { .. }) => {}
                Err(error) => {
                    failed += 1;
                    tracing::debug!(%key, %error, "an object cannot be deleted; a later start does");
                }
            }
        }
        failed
    }
}

/// Who holds it, holds it for one write; gives up after [`LOCK_TRIES`].
async fn lock(path: &Path) -> Result<File, ObjectsError> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).map_err(ObjectsError::io("create", folder))?;
    let file = File::create(path).map_err(ObjectsError::io("lock", path))?;
    let mut tries = 0;
    while let Err(error) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
        tries += 1;
        if tries == LOCK_TRIES {
            return Err(ObjectsError::io("lock", path)(error.into()));
        }
        tokio::time::sleep(LOCK_RETRY).await;
    }
    Ok(file)
}

/// Compares what was read from the file at `path` with what its manifest says.
fn check(
    path: &Path,
    hash: &blake3::Hash,
    bytes: u64,
    expected: Option<(u64, &str)>,
) -> Result<(), ObjectsError> {
    match expected {
        Some((length, blake3)) if bytes != length || hash.to_hex().as_str() != blake3 => {
            let key = path.display().to_string();
            let what = "is not what was written, so it is not copied over a good one".to_owned();
            Err(ObjectsError::Damaged { key, what })
        }
        _ => Ok(()),
    }
}
