use super::*;

fn intent(n: u8, expires: Tick) -> Intent {
    Intent {
        id: Id([n; 16]),
        decision: Id([0; 16]),
        tick: u64::from(n),
        expires,
        owner: "t/p/a/c".parse().unwrap(),
        desired: Setting::Bid { bid_micros: i64::from(n) },
        before: Some(Setting::Bid { bid_micros: 1 }),
        reasons: vec!["pacing".into()],
    }
}

fn applied(n: u8) -> Outcome {
    Outcome::Applied { effective: Setting::Bid { bid_micros: i64::from(n) } }
}

fn segment_bytes(dir: &Path) -> Vec<u8> {
    fs::read(segment::path(dir, 1)).unwrap()
}

#[test]
fn what_began_and_did_not_end_is_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(dir.path()).unwrap();
    ledger.intend(&intent(1, 100));
    ledger.intend(&intent(2, 100));
    ledger.commit(0).unwrap();
    ledger.end(Id([1; 16]), 5, &applied(1));
    ledger.commit(5).unwrap();
    drop(ledger);

    let ledger = Ledger::open(dir.path()).unwrap();
    assert_eq!(ledger.repaired_bytes(), 0);
    assert_eq!(ledger.unfinished(), [intent(2, 100)]);
    assert_eq!(ledger.seen(Id([1; 16])), Some(Seen::Ended(applied(1))));
    assert_eq!(ledger.seen(Id([2; 16])), Some(Seen::Unfinished));
    assert_eq!(ledger.seen(Id([3; 16])), None);
    // Read-only look-ups work beside the open ledger.
    let undo = Ledger::undo_plan(dir.path(), Id([1; 16])).unwrap();
    assert_eq!(undo, Some(Setting::Bid { bid_micros: 1 }));
    assert_eq!(Ledger::undo_plan(dir.path(), Id([2; 16])).unwrap(), None, "it did not end yet");
}

#[test]
fn only_one_process_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let first = Ledger::open(dir.path()).unwrap();
    assert!(matches!(Ledger::open(dir.path()), Err(LedgerError::Locked { .. })));
    drop(first);
    assert!(Ledger::open(dir.path()).is_ok());
}

#[test]
fn a_torn_end_is_cut_at_every_length() {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(dir.path()).unwrap();
    ledger.intend(&intent(1, 100));
    ledger.commit(0).unwrap();
    let first = segment_bytes(dir.path()).len();
    ledger.end(Id([1; 16]), 1, &applied(1));
    ledger.intend(&intent(2, 100));
    ledger.commit(0).unwrap();
    drop(ledger);
    let whole = segment_bytes(dir.path());
    for len in first..whole.len() {
        fs::write(segment::path(dir.path(), 1), &whole[..len]).unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        assert_eq!(ledger.repaired_bytes(), (len - first) as u64);
        assert_eq!(ledger.unfinished(), [intent(1, 100)], "cut at {len}");
        assert_eq!(segment_bytes(dir.path()).len(), first);
    }
}

#[test]
fn damage_before_the_end_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(dir.path()).unwrap();
    for n in 1..4 {
        ledger.intend(&intent(n, 100));
        ledger.commit(0).unwrap();
    }
    drop(ledger);
    let whole = segment_bytes(dir.path());
    let batch = whole.len() / 3;
    for at in [0, 1, 20, batch / 2, batch + 3] {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        fs::write(segment::path(dir.path(), 1), &damaged).unwrap();
        let error = Ledger::open(dir.path()).err().expect("damage is noticed");
        assert!(matches!(error, LedgerError::Corrupt { .. }), "{error}");
    }
    fs::write(segment::path(dir.path(), 1), &whole).unwrap();
    assert_eq!(Ledger::open(dir.path()).unwrap().unfinished().len(), 3);
}

#[test]
fn segments_roll_and_carry_what_is_unfinished() {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(dir.path()).unwrap();
    ledger.intend(&intent(1, 10));
    ledger.commit(0).unwrap();
    for n in 2..20u8 {
        ledger.intend(&intent(n, 10));
        ledger.end(Id([n; 16]), 5, &applied(n));
        ledger.commit(5).unwrap();
        ledger.rotate(11 + KEPT_MS).unwrap();
    }
    assert_eq!(segment::list(dir.path()).unwrap().len(), SEGMENTS_KEPT + 1);
    drop(ledger);
    let ledger = Ledger::open(dir.path()).unwrap();
    assert_eq!(ledger.unfinished(), [intent(1, 10)]);
    assert_eq!(ledger.seen(Id([18; 16])), Some(Seen::Ended(applied(18))));
}

#[test]
fn only_ids_that_can_never_run_again_are_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(dir.path()).unwrap();
    for n in [1, 2, 3] {
        ledger.intend(&intent(n, 10 * u64::from(n)));
    }
    ledger.end(Id([1; 16]), 1, &applied(1));
    ledger.end(Id([2; 16]), 1, &applied(2));
    ledger.commit(0).unwrap();
    ledger.forget(11 + KEPT_MS);
    assert_eq!(ledger.seen(Id([1; 16])), None);
    assert_eq!(ledger.seen(Id([2; 16])), Some(Seen::Ended(applied(2))));
    ledger.forget(1_000 + KEPT_MS);
    assert_eq!(ledger.seen(Id([3; 16])), Some(Seen::Unfinished), "unfinished is never forgotten");
}

#[test]
fn a_failed_commit_forgets_intents_and_keeps_outcomes() {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(dir.path()).unwrap();
    ledger.intend(&intent(1, 100));
    ledger.commit(0).unwrap();
    // A file opened for reading refuses the write as a full disk would.
    let path = segment::path(dir.path(), 1);
    let read_only = Box::new(File::open(&path).unwrap());
    let good = std::mem::replace(&mut ledger.file, read_only);
    ledger.intend(&intent(2, 100));
    ledger.end(Id([1; 16]), 1, &applied(1));
    let error = ledger.commit(1).unwrap_err();
    assert!(error.to_string().contains("check space"), "{error}");
    assert_eq!(ledger.seen(Id([2; 16])), None, "it was not intended");
    ledger.file = good;
    ledger.commit(1).unwrap();
    drop(ledger);
    let ledger = Ledger::open(dir.path()).unwrap();
    assert_eq!(ledger.unfinished(), []);
    assert_eq!(ledger.seen(Id([1; 16])), Some(Seen::Ended(applied(1))));
}
