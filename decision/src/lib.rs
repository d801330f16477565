//! The decision stage: complete feature frames and control inputs in, decisions and actions out.
//!
//! # Contract
//! [`stage::Stage::on_tick`] is a pure state machine. The same sequence of ticks, controls and frames gives
//! the same decisions and the same action ids, bit for bit.
//!
//! # What this crate never does
//! It reads no clock, opens no file or socket, and knows no dataflow: it imports only
//! `omnify_operators::model`. Randomness is a seeded function of (entity, tick, policy version).

mod account;
pub mod action;
pub mod allocate;
pub mod autonomy;
pub mod bid;
mod campaign;
pub mod codes;
mod config;
pub mod control;
mod day;
mod digest;
mod draft;
mod dual;
pub mod goal;
pub mod guardrail;
pub mod learn;
pub mod ledger;
pub mod model;
mod plan;
mod policy;
pub mod stage;
mod steer;
mod view;
mod wear;
