//! Runs the scripts in `tests/sessions`: what is fed to the graph, and what must come out.
//!
//! Every script is run on 1, 2 and 4 workers, whose outputs must be identical. `UPDATE=1` writes
//! what comes out into the scripts, to be reviewed like code.
//!
//! # Language
//! One command a line; `#` starts a comment. Times are RFC 3339, or `+SPAN` inside `times`.
//!
//! - `window W...`, `cadence BUSY IDLE | none`, `show LEVEL...`, `zone ACCOUNT NAME`,
//!   `attribution ACCOUNTS WINDOW`: the set-up.
//! - `feed TIME CREATIVE KIND [n=] [clicks=] [conv=] [cost=] [revenue=] [user=] [id=]`: an event,
//!   which enters at the next tick; `n` counts what the kind counts.
//! - `report AS_OF CREATIVE START END [n=] [clicks=] ... [seq=] [attribution=]`: totals of an interval so
//!   far.
//! - `tick TIME`: closes a tick. The last tick of a script ends the stream.
//! - `times COUNT SPAN from TIME` … `end`: repeats its lines; `+SPAN` is from the start of a round,
//!   and `n=100..50` runs evenly from the first value to the last.
//! - `expect [WHAT...]`: what came out since the last `expect`, in the lines below it that start
//!   with `|`. WHAT limits it to `closed`, `rows`, `refused`, `held`, rows to their `sums`, `rates`,
//!   `reach`, `fatigue`, `anomaly`, and all of it to entities by key.

mod sessions_support;
mod support;

use sessions_support::{Session, print};
use support::run;

#[test]
fn sessions_say_what_they_expect() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sessions");
    let mut paths: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() >= 10, "sessions are missing");
    let mut wrong = Vec::new();
    for path in paths {
        let text = std::fs::read_to_string(&path).unwrap();
        let session = Session::read(&text).unwrap_or_else(|problem| panic!("{path:?} {problem}"));
        let one = run(&session.spec, &session.registry, &session.inputs, 1);
        for workers in [2, 4] {
            let many = run(&session.spec, &session.registry, &session.inputs, workers);
            assert!(many == one, "{path:?}: {workers} workers put out something else than one");
        }
        let entered = session.inputs.values().map(|input| input.events.len()).sum::<usize>();
        let restated = one.restated;
        assert_eq!(
            one.featured + one.refused + one.held,
            entered as u64 + restated,
            "{path:?}: conservation"
        );
        let printed = print(&text, &session, &one);
        if printed != text {
            if std::env::var_os("UPDATE").is_some() {
                std::fs::write(&path, &printed).unwrap();
            } else {
                wrong.push(format!("{path:?}:\n{}", difference(&text, &printed)));
            }
        }
    }
    assert!(wrong.is_empty(), "UPDATE=1 accepts these:\n{}", wrong.join("\n"));
}

/// The lines that differ, between what both texts begin and end with.
fn difference(want: &str, got: &str) -> String {
    let (want, got): (Vec<_>, Vec<_>) = (want.lines().collect(), got.lines().collect());
    let same = want.iter().zip(&got).take_while(|(a, b)| a == b).count();
    let rest = want[same..].iter().rev().zip(got[same..].iter().rev());
    let tail = rest.take_while(|(a, b)| a == b).count();
    let lines = |sign: char, lines: &[&str]| {
        lines.iter().map(|line| format!("{sign} {line}\n")).collect::<String>()
    };
    let (removed, added) = (&want[same..want.len() - tail], &got[same..got.len() - tail]);
    format!("line {}\n{}{}", same + 1, lines('-', removed), lines('+', added))
}
