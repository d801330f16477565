//! How far something has come, in ticks, for threads that wait for it.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use omnify_operators::model::Tick;

/// A tick that only moves forward, until it ends.
#[derive(Debug, Default)]
pub struct Reached {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    tick: Option<Tick>,
    ended: bool,
}

impl Reached {
    /// Stands at `tick` from the start.
    pub fn at(tick: Option<Tick>) -> Reached {
        Reached { state: Mutex::new(State { tick, ended: false }), changed: Condvar::new() }
    }

    /// Moves on to `tick`.
    pub fn reach(&self, tick: Tick) {
        let mut state = self.lock();
        state.tick = state.tick.max(Some(tick));
        self.changed.notify_all();
    }

    /// It will move no further: whoever waits is let go.
    pub fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }

    /// Whether it will move no further.
    pub fn has_ended(&self) -> bool {
        self.lock().ended
    }

    /// How far it has come.
    pub fn tick(&self) -> Option<Tick> {
        self.lock().tick
    }

    /// Waits until `tick` is reached; false when it never will be.
    pub fn wait(&self, tick: Tick) -> bool {
        let mut state = self.lock();
        loop {
            if state.tick >= Some(tick) {
                return true;
            }
            if state.ended {
                return false;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn waiters_are_let_go_when_it_is_reached_and_when_it_ends() {
        let reached = Arc::new(Reached::at(Some(3)));
        assert!(reached.wait(3));
        let waiter = |tick| {
            let reached = reached.clone();
            std::thread::spawn(move || reached.wait(tick))
        };
        let (near, far) = (waiter(5), waiter(9));
        reached.reach(4);
        reached.reach(6);
        assert!(near.join().unwrap());
        reached.reach(2);
        assert_eq!(reached.tick(), Some(6));
        reached.end();
        assert!(!far.join().unwrap());
    }
}
