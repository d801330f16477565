//! The decision stage: complete feature frames and control inputs in, decisions and actions out.
//!
//! ```text
//!  frame (complete at a tick) ─┐
//!  controls ───────────────────┼─► stage ─┬─ wear: rotation, alerts
//!  wakes (own timers) ─────────┘          └─ campaign: policy ► dual ► allocate
//!                                                │
//!            ledger (desired, actual, in flight) ◄── draft ◄── guardrail, then autonomy
//!                                                │
//!                     decisions, actions ◄───────┘────────► bid book (POST /v1/bids)
//! ```
//!
//! # Contract
//! [`stage::Stage::on_tick`] is a pure state machine. The same sequence of ticks, controls and
//! frames gives the same decisions and the same action ids, bit for bit; ticks without controls
//! and rows may be left out. [`digest::DecisionDigest`] is the proof: one hash over all decisions in order.
//!
//! # What is decided
//! - A *campaign* row under an active goal is one decision, no-ops included: start or stop the day,
//!   set the budget, or move the bid, at most one of them a tick.
//! - A *creative* that wears out hands over to its best fresh sibling, or people are told; ad
//!   groups, campaigns, accounts and tenants that wear out or deliver unusually are told about,
//!   once per episode.
//! - Anything else is no decision.
//! - A campaign that sends no rows is looked at again after `controller.review_ms`, at most 24
//!   times in a row, and at the next local midnight if it was stopped for a spent day.
//!
//! # How a bid comes about
//! With the value of one bid unit `worth` (CPM: `1000 · ctr · cvr` conversions; CPC: `cvr`; clicks
//! or revenue by the goal), what one unit of value may cost `price`, the budget dual μ and the KPI
//! dual λ:
//!
//! ```text
//! bid = min( worth / μ , ((1 + λ) / λ) · price · worth )
//! ```
//!
//! | equation | where | source |
//! |---|---|---|
//! | min pacing of two duals | `dual` | Balseiro et al., *A Field Guide for Pacing Budget and ROS Constraints* (2023) |
//! | log-domain PI, deadband, lag prediction | `dual`, `steer` | Zhang et al., *Feedback Control of Real-Time Display Advertising* (2016) |
//! | spend plan from one sample per slot | `plan` | Balseiro et al., *Robust Budget Pacing with a Single Sample* (2023) |
//! | shading `√(l² + l·v) − l` | [`bid::first_price`] | Zhang, Yuan, Wang, *Optimal Real-Time Bidding* (2014) |
//! | equal marginal return | [`allocate`] | Karush-Kuhn-Tucker conditions of a convex split |
//!
//! KPIs are read maturity-safe: conversions per click come from the longest window without its
//! freshest day (see `view`), because conversions keep arriving for weeks. A plan starts flat and
//! learns the account's own shape by hour of the day and weekday.
//!
//! # What no action crosses
//! [`guardrail::judge`] runs last, is one function, and no draft becomes an action without it; the
//! invariants are checked again in all builds and violations are counted
//! ([`stage::Counters::invariant_violations`]): 5 no limit crossed, 6 one action in flight per
//! owner, 7 ids are functions of (owner, tick, desired), 8 committed ≤ budget.
//!
//! # What waits for a person
//! A change that the autonomy setting or a guardrail gives to a person waits in
//! [`approvals`]; approved, it is judged anew and carried out under the id it was proposed with.
//!
//! # Restart
//! [`stage::Stage::save`] writes everything that influences a later output, from a clone that costs
//! next to nothing to take; [`stage::Stage::load`] goes on from it, decision for decision.
//!
//! # What this crate never does
//! It reads no clock, opens no file or socket, and knows no dataflow: it imports only
//! `omnify_operators::model`. Randomness is a seeded function of (entity, tick, policy version).
//! No hash map is iterated on a path that reaches an output.

mod account;
pub mod action;
pub mod allocate;
pub mod approvals;
pub mod autonomy;
pub mod bid;
mod campaign;
pub mod codes;
mod config;
pub mod control;
mod day;
pub mod digest;
mod draft;
mod dual;
pub mod goal;
mod goals;
pub mod guardrail;
mod ids;
pub mod learn;
pub mod ledger;
pub mod model;
mod pages;
mod plan;
mod policy;
mod portfolio;
pub mod stage;
mod steer;
mod view;
mod wear;
mod wire;
