//! Over the store in memory, a folder, a faulty store and, where OMNIFY_S3_ENDPOINT names one, a real
//! server (deploy/s3/run.sh).

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt};
use proptest::prelude::*;

use super::faults::{FaultyStore, Rates};
use super::*;
use crate::snapshot::{Manifest, SnapshotStore, SnapshotWriter};

fn owner(folder: &str, name: &str) -> Owner {
    Owner { folder: folder.to_owned(), name: name.to_owned(), strict: false }
}

/// Each kind of store, empty, by name.
fn stores(dir: &Path) -> Vec<(&'static str, Remote)> {
    let access = Access {
        endpoint: std::env::var("OMNIFY_S3_ENDPOINT").unwrap_or_default(),
        region: "us-east-1".to_owned(),
        path_style: true,
        allow_http: true,
        timeout: Duration::from_secs(10),
    };
    let memory = Remote::new(Arc::new(InMemory::new()), "some/prefix", "memory");
    let folder = Address::File(dir.join("copy")).open(&access).unwrap();
    let mut stores = vec![("memory", memory), ("folder", folder)];
    match access.endpoint.is_empty() {
        true => eprintln!("no real S3 server: OMNIFY_S3_ENDPOINT is not set (deploy/s3/run.sh)"),
        false => {
            let unique = dir.file_name().unwrap().to_string_lossy().into_owned();
            let address = Address::parse(&format!("s3://omnify/tests/{unique}")).unwrap();
            stores.push(("s3", address.open(&access).unwrap()));
        }
    }
    stores
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new().unwrap().block_on(future)
}

fn append(name: &str, piece: Piece) -> Change {
    Change::Append(name.to_owned(), piece)
}

#[test]
fn real_s3_a_commit_counts_once_and_an_overtaken_engine_is_fenced() {
    let dir = tempfile::tempdir().unwrap();
    for (kind, remote) in stores(dir.path()) {
        block_on(async {
            let mut first = Claim::take(&remote, owner("a", "first"), false).await.unwrap();
            assert_eq!(first.head().epoch, 1, "{kind}");
            let piece = remote.put("e1/journal/x.1", "hello".into()).await.unwrap();
            assert_eq!(first.commit(&[append("journal/x", piece)], true).await.unwrap(), [""; 0]);
            // Another folder is refused, and changes nothing.
            let error = Claim::take(&remote, owner("b", "stranger"), false).await.unwrap_err();
            assert!(error.is_fenced() && error.to_string().contains("first"), "{kind}: {error}");
            first.commit(&[Change::Run("run-1".into())], true).await.unwrap();
            // The same folder goes on, with what was there; so does one that takes over.
            let mut second = Claim::take(&remote, owner("a", "second"), false).await.unwrap();
            assert_eq!(second.head().files["journal/x"][0].bytes, 5, "{kind}");
            let error = first.commit(&[Change::Run("run-2".into())], true).await.unwrap_err();
            assert!(matches!(error, ObjectsError::Fenced { epoch: 2, ours: 1, .. }), "{error}");
            let third = Claim::take(&remote, owner("c", "third"), true).await.unwrap();
            let error = second.commit(&[], true).await.unwrap_err();
            assert!(error.is_fenced() && error.to_string().contains("third"), "{kind}: {error}");
            let head = remote.read_head().await.unwrap();
            assert_eq!(&head, third.head(), "{kind}");
            assert_eq!((head.run.as_deref(), head.epoch), (Some("run-1"), 3), "{kind}");
        });
    }
}

#[test]
fn real_s3_of_many_who_take_an_epoch_at_once_each_gets_one_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    for (kind, remote) in stores(dir.path()) {
        block_on(async {
            let names: Vec<String> = (0..6).map(|at| format!("p{at}")).collect();
            let claims = names.iter().map(|name| Claim::take(&remote, owner("a", name), false));
            let mut claims: Vec<Claim> =
                join_all(claims).await.into_iter().collect::<Result<_, _>>().unwrap();
            let mut epochs: Vec<u64> = claims.iter().map(|claim| claim.head().epoch).collect();
            epochs.sort_unstable();
            assert_eq!(epochs, [1, 2, 3, 4, 5, 6], "{kind}");
            let commits = claims.iter_mut().map(|claim| claim.commit(&[], true));
            let good = join_all(commits).await.iter().filter(|commit| commit.is_ok()).count();
            assert_eq!(good, 1, "{kind}: only the last epoch commits");
        });
    }
}

#[test]
fn real_s3_large_files_come_back_and_damage_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let (path, back) = (dir.path().join("large"), dir.path().join("back"));
    let content: Vec<u8> = (0..20_000_000_u32).map(|at| (at % 251) as u8).collect();
    std::fs::write(&path, &content).unwrap();
    let hash = blake3::hash(&content).to_hex().to_string();
    for (kind, remote) in stores(dir.path()) {
        block_on(async {
            let expected = Some((content.len() as u64, hash.as_str()));
            // A name with escaped characters stays that name.
            let key = "history/r/table=events/tenant=a%20b/date=2026-01-01/part-1.parquet";
            let piece = remote.put_file(key, &path, expected).await.unwrap();
            remote.get_file(&piece, &back).await.unwrap();
            assert!(std::fs::read(&back).unwrap() == content, "{kind}");
            let listed = remote.list("history").await.unwrap();
            assert_eq!(listed.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(), [key]);
            // What is not what its manifest says does not replace what is there.
            let error = remote.put_file(key, &path, Some((1, &hash))).await.unwrap_err();
            assert!(matches!(error, ObjectsError::Damaged { .. }), "{kind}: {error}");
            assert!(remote.get_file(&piece, &back).await.is_ok(), "{kind}");
            remote.put(key, "short".into()).await.unwrap();
            let error = remote.get_file(&piece, &back).await.unwrap_err().to_string();
            assert!(error.contains("has 5 bytes, 20000000 were written"), "{kind}: {error}");
            assert!(!back.exists(), "{kind}: what fails its check is not left there");
            assert_eq!(remote.delete(&["history/r/".to_owned()]).await, 0);
            let error = remote.get_file(&piece, &back).await.unwrap_err().to_string();
            assert!(error.contains("is missing"), "{kind}: {error}");
        });
    }
}

#[test]
fn real_s3_wrong_credentials_are_said_and_never_shown() {
    let Ok(endpoint) = std::env::var("OMNIFY_S3_ENDPOINT") else {
        eprintln!("skipped: OMNIFY_S3_ENDPOINT is not set (deploy/s3/run.sh)");
        return;
    };
    use object_store::aws::AmazonS3Builder;
    let builder = AmazonS3Builder::new().with_endpoint(endpoint).with_bucket_name("omnify");
    let builder = builder.with_region("us-east-1").with_allow_http(true);
    let builder = builder.with_crypto_provider(Arc::new(crypto::OpenSsl));
    let store = builder.with_access_key_id("omnify").with_secret_access_key("not-the-secret");
    let remote = Remote::new(Arc::new(store.build().unwrap()), "p", "s3://omnify/p");
    let error = block_on(Claim::take(&remote, owner("a", "x"), false)).unwrap_err().to_string();
    assert!(error.contains("cannot read `s3://omnify/p/head.json`"), "{error}");
    assert!(!error.contains("not-the-secret"), "{error}");
}

/// A snapshot, a journal, a ledger and a history as `bulk` and `tail` would leave them.
async fn copy(remote: &Remote, dir: &Path, ticks: &[u64]) -> Claim {
    let mut claim = Claim::take(remote, owner("a", "writer"), false).await.unwrap();
    let mut changes = Vec::new();
    for tick in ticks {
        let mut writer = SnapshotWriter::begin(&SnapshotStore::at(dir), *tick).unwrap();
        writer.chunk("stage", format!("state at {tick}").as_bytes()).unwrap();
        writer.commit(Manifest { tick: *tick, ..Manifest::default() }).unwrap();
        let folder = dir.join(format!("{tick:020}"));
        let place = format!("e1/snapshots/{tick:020}");
        remote
            .put_file(&format!("{place}/stage.bin"), &folder.join("stage.bin"), None)
            .await
            .unwrap();
        let manifest = folder.join("manifest.json");
        let piece = remote.put_file(&format!("{place}/manifest.json.1"), &manifest, None).await;
        changes
            .push(Change::Set(format!("snapshots/{tick:020}/manifest.json"), vec![piece.unwrap()]));
    }
    for first in [0, 50, 150] {
        let name = format!("journal/journal-{first:020}.omj");
        for at in 0..2 {
            let (key, text) = (format!("e1/{name}.{at}"), format!("<{first}.{at}>"));
            changes.push(append(&name, remote.put(&key, text.into()).await.unwrap()));
        }
    }
    for number in 1..3 {
        let name = format!("ledger/actions-{number:010}.ledger");
        let piece = remote.put(&format!("e1/{name}.1"), format!("ledger {number}").into()).await;
        changes.push(append(&name, piece.unwrap()));
    }
    claim.commit(&changes, true).await.unwrap();
    claim
}

/// What `damage` makes of the restore.
fn restored(
    ticks: &[u64],
    damage: impl AsyncFnOnce(&Remote),
) -> (Result<Restored, ObjectsError>, tempfile::TempDir, Head) {
    let dir = tempfile::tempdir().unwrap();
    let remote = Remote::new(Arc::new(InMemory::new()), "", "memory");
    let (restored, head) = block_on(async {
        copy(&remote, &dir.path().join("source"), ticks).await;
        damage(&remote).await;
        let mut claim = Claim::take(&remote, owner("b", "new"), true).await.unwrap();
        let restored = restore(&mut claim, &dir.path().join("state"), None, true).await;
        (restored, claim.head().clone())
    });
    (restored, dir, head)
}

fn files_in(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn the_newest_snapshot_whose_objects_hold_is_restored_with_the_journal_behind_it() {
    let (good, dir, _) = restored(&[100, 200], async |_| {});
    let good = good.unwrap();
    assert_eq!((good.snapshot, good.strict, good.damaged.len()), (Some(200), true, 0));
    let state = dir.path().join("state");
    assert_eq!(files_in(&state.join("snapshots")), [format!("{:020}", 200)]);
    let journal = state.join("journal").join(format!("journal-{:020}.omj", 50));
    assert_eq!(std::fs::read_to_string(journal).unwrap(), "<50.0><50.1>");
    assert_eq!(files_in(&state.join("ledger")).len(), 2);

    for gone in ["stage.bin", "manifest.json.1"] {
        let (found, dir, head) = restored(&[100, 200], async |remote| {
            let key = format!("e1/snapshots/{:020}/{gone}", 200);
            assert_eq!(remote.delete(&[key]).await, 0);
        });
        let found = found.unwrap();
        assert_eq!(found.snapshot, Some(100), "{gone}");
        assert!(found.damaged[0].contains("is missing"), "{:?}", found.damaged);
        // The damaged one is not counted any more.
        assert_eq!(head.snapshots().iter().map(|(tick, _)| *tick).collect::<Vec<_>>(), [100]);
        assert_eq!(files_in(&dir.path().join("state/snapshots")), [format!("{:020}", 100)]);
    }
    let (found, ..) = restored(&[100, 200], async |remote| {
        let key = format!("e1/snapshots/{:020}/stage.bin", 200);
        remote.put(&key, "changed".into()).await.unwrap();
    });
    assert_eq!(found.unwrap().snapshot, Some(100));
}

#[test]
fn a_journal_that_is_needed_must_be_whole_and_an_older_one_may_be_lost() {
    let damage = |first: u64| {
        async move |remote: &Remote| {
            let key = format!("e1/journal/journal-{first:020}.omj.1");
            remote.put(&key, "<?>".into()).await.unwrap();
        }
    };
    // The snapshot at 200 needs the segment that begins at 150, no other.
    let (found, dir, head) = restored(&[100, 200], damage(50));
    assert_eq!(found.unwrap().damaged.len(), 1);
    let left = [format!("journal-{:020}.omj", 150)];
    assert_eq!(files_in(&dir.path().join("state/journal")), left);
    assert_eq!(head.group(JOURNAL).map(|(name, _)| name).collect::<Vec<_>>(), left);
    let (found, ..) = restored(&[100, 200], damage(150));
    let error = found.unwrap_err().to_string();
    assert!(error.contains("journal-00000000000000000150.omj.1"), "{error}");
    // Without a snapshot all of it is needed.
    let (found, ..) = restored(&[], damage(0));
    assert!(matches!(found, Err(ObjectsError::Damaged { .. })));
    // The newest part of the ledger holds what is unfinished; older ones put actions in doubt.
    let ledger = |number: u64| {
        async move |remote: &Remote| {
            let key = format!("e1/ledger/actions-{number:010}.ledger.1");
            assert_eq!(remote.delete(&[key]).await, 0);
        }
    };
    let (found, ..) = restored(&[100], ledger(1));
    let found = found.unwrap();
    assert_eq!((found.strict, found.damaged.len()), (false, 1));
    let (found, ..) = restored(&[100], ledger(2));
    assert!(matches!(found, Err(ObjectsError::Damaged { .. })));
}

#[test]
fn only_what_nobody_lists_is_swept() {
    let dir = tempfile::tempdir().unwrap();
    let inner: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let faulty = Arc::new(FaultyStore::new(inner, Rates::default(), 1));
    let remote = Remote::new(faulty.clone(), "p", "memory");
    block_on(async {
        copy(&remote, &dir.path().join("source"), &[100, 200]).await;
        let garbage = ["e1/journal/x.9", "e1/snapshots/00000000000000000300/stage.bin"];
        for key in garbage {
            remote.put(key, "left behind".into()).await.unwrap();
        }
        remote.put("e2/journal/y.1", "on its way".into()).await.unwrap();
        remote.put("notes.txt", "not ours".into()).await.unwrap();
        let mut claim = Claim::take(&remote, owner("a", "next"), false).await.unwrap();
        let all = remote.list("").await.unwrap().len();
        // Nothing is older than the grace.
        assert_eq!(sweep(&remote, claim.head(), GRACE).await.unwrap(), 0);
        std::thread::sleep(Duration::from_millis(5));
        claim.commit(&[], true).await.unwrap();
        let mut deleted = 0;
        // A listing that leaves things out deletes less, never more.
        faulty.rates(Rates { unlisted: 500, ..Rates::default() });
        for _ in 0..40 {
            deleted += sweep(&remote, claim.head(), Duration::from_millis(1)).await.unwrap();
        }
        assert_eq!(deleted, garbage.len());
        faulty.rates(Rates::default());
        assert_eq!(remote.list("").await.unwrap().len(), all - garbage.len());
        let state = dir.path().join("state");
        let found = restore(&mut claim, &state, None, true).await.unwrap();
        assert_eq!((found.snapshot, found.damaged.len()), (Some(200), 0));
    });
}

#[test]
fn a_head_that_was_changed_or_comes_from_the_future_is_refused() {
    let store = Arc::new(InMemory::new());
    let remote = Remote::new(store.clone(), "", "memory");
    block_on(async {
        assert!(matches!(remote.read_head().await, Err(ObjectsError::Nothing { .. })));
        let claim = Claim::take(&remote, owner("a", "x"), false).await.unwrap();
        let good = claim.head().to_bytes();
        let mut bad = good.clone();
        *bad.last_mut().unwrap() = b' ';
        store.put(&"head.json".into(), bad.into()).await.unwrap();
        let error = remote.read_head().await.unwrap_err().to_string();
        assert!(error.contains("fails its checksum"), "{error}");
        let later = String::from_utf8(good[65..].to_vec()).unwrap();
        let later = later.replace("\"format\":1", "\"format\":9");
        let later = format!("{}\n{later}", blake3::hash(later.as_bytes()).to_hex());
        store.put(&"head.json".into(), later.into()).await.unwrap();
        let error = Claim::take(&remote, owner("a", "x"), false).await.unwrap_err();
        assert!(matches!(error, ObjectsError::Newer { format: 9, .. }), "{error}");
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// However the store fails, what a claim says it committed is what a reader sees, in order, once.
    #[test]
    fn what_is_committed_is_there_once(seed in 1_u64.., refused in 0_u64..300, lost in 0_u64..300) {
        let rates = Rates { refused, reply_lost: lost, ..Rates::default() };
        let inner: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let faulty = Arc::new(FaultyStore::new(inner.clone(), rates, seed));
        let remote = Remote::new(faulty, "p", "faulty");
        let reader = Remote::new(inner, "p", "memory");
        block_on(async {
            let mut committed = Vec::new();
            for life in 0..3 {
                let mut claim = loop {
                    match Claim::take(&remote, owner("a", &format!("life {life}")), false).await {
                        Ok(claim) => break claim,
                        Err(error) => assert!(!error.is_fenced(), "{error}"),
                    }
                };
                let mut pending = Vec::new();
                for at in 0..12 {
                    let key = format!("e{}/journal/x.{at}", claim.head().epoch);
                    let Ok(piece) = remote.put(&key, key.clone().into()).await else { continue };
                    pending.push(append("journal/x", piece));
                    match claim.commit(&pending, true).await {
                        Ok(_) => committed.append(&mut pending),
                        Err(error) => assert!(!error.is_fenced(), "{error}"),
                    }
                }
                // What was not said to be committed may be all the same.
                let head = reader.read_head().await.unwrap();
                let seen: Vec<Change> = head.files.get("journal/x").into_iter().flatten()
                    .map(|piece| append("journal/x", piece.clone())).collect();
                assert!(seen.starts_with(&committed), "{seen:?} {committed:?}");
                assert!(seen.len() <= committed.len() + pending.len());
                committed = seen;
                for change in &committed {
                    let Change::Append(_, piece) = change else { unreachable!() };
                    assert_eq!(reader.get(piece).await.unwrap(), piece.key.as_bytes());
                }
            }
        });
    }
}
