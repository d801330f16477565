//! `omnify run` over several processes on this machine: the same output as in one, rows read
//! everywhere, and when one of them is lost all end, start again, and hold what was acknowledged.
#![cfg(unix)]

mod kafka;
mod loss;
mod rig;
mod same;
mod strangers;
#[path = "../support/mod.rs"]
mod support;
