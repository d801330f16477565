//! The executors against platforms that fail: each sink keeps the contract of the trait, and the
//! dispatcher with its ledger executes each action once whatever fails when.

mod conformance;
mod crash;
mod faults;
mod kafka;
mod platform;
mod property;
mod real_kafka;
mod rig;
