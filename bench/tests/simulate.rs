//! The simulation at a size that shows that it runs, and the seeds that found something.

use omnify_bench::simulate::{Options, Run, once};

const STEPS: u64 = 600;

fn options() -> Options {
    let without = Default::default();
    Options { seed: 0, steps: STEPS, time: None, without, dir: None, shrink: false, loud: false }
}

fn holds(seed: u64, steps: u64) -> Run {
    once(seed, steps, &options()).unwrap_or_else(|failure| {
        let trace = failure.trace.join("\n");
        panic!("seed {seed}, step {}: {}\n{trace}", failure.step, failure.what)
    })
}

#[test]
fn some_seeds_show_no_defect() {
    for seed in 1..=4 {
        holds(seed, STEPS);
    }
}

#[test]
fn a_seed_gives_the_same_run_every_time() {
    let (one, two, other) = (holds(11, STEPS), holds(11, STEPS), holds(12, STEPS));
    assert_eq!((one.digest, one.lives), (two.digest, two.lives));
    assert_ne!(one.digest, other.digest);
}
