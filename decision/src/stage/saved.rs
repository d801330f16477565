//! The stage's whole state as bytes, and back.
//!
//! # Contract
//! - A stage loaded from what another saved, under the same configuration and over a registry with
//!   the same dense ids, continues exactly as the other would have: same decisions, same ids.
//! - Equal states give equal bytes: maps are written in sorted order.
//! - Bytes that are cut short or altered are an error, never a panic: a checksum is in front.
//! - What follows from the rest is not written but worked out anew: what goals cover, the queue of
//!   wakes, the totals of portfolios, the bid book's rates of creatives. That is why another
//!   configuration may be given; only other windows cannot, as rows are made of them.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use omnify_operators::model::{EntityId, Level, RegistryView, WindowSpec};

use super::{ExecutorMode, Stage, StageConfig, StageError};
use crate::account::Account;
use crate::approvals::Proposal;
use crate::bid::Quote;
use crate::campaign::{Campaign, Memory};
use crate::goals::SavedGoals;
use crate::ledger::Ledger;
use crate::model::ClickModel;
use crate::wear::Wear;
use crate::wire::{Entities, Reader, Writer, unreadable};

/// Version of the format; a stage reads its own only.
const FORMAT: u32 = 2;

impl Stage {
    /// Everything that influences a later output, as bytes. Meant to be called on a clone, on
    /// another thread.
    pub fn save(&self) -> Vec<u8> {
        let mut out = Writer::new();
        out.put(&FORMAT);
        out.put(&self.config.windows);
        out.put(&(&self.counters, self.allocated_day, self.book.tick(), &self.killed));
        let model = self.model.as_ref().map(|model| (model.version(), model.to_json().to_string()));
        out.put(&model);
        out.put(&self.goals.saved());
        self.ledger.save(&mut out);
        let mut accounts: Vec<_> = self.accounts.iter().collect();
        accounts.sort_unstable_by_key(|(id, _)| **id);
        out.list(accounts.len(), accounts.into_iter());
        let campaigns = self.campaigns.slots().map(|slot| {
            let campaign = slot?;
            Some((campaign.info.id, &campaign.memory, self.book.quote(&campaign.info.key)))
        });
        out.list(self.campaigns.end(), campaigns);
        self.wear.save(&mut out);
        out.list(self.approvals.len(), self.approvals.iter());
        out.finish()
    }

    /// A stage that continues where the one that wrote `bytes` stood. `view` is of the registry
    /// restored with the same dense ids.
    ///
    /// Another configuration is followed: goals are found by name, and where they differ from the
    /// ones saved, portfolios are shared out anew at the next tick. In a dry run what was in flight
    /// counts as applied, as nobody is left to say so.
    pub fn load(
        config: StageConfig,
        bytes: &[u8],
        view: &mut RegistryView,
    ) -> Result<Stage, StageError> {
        let mut stage = Stage::new(config)?;
        let mut input = Reader::new(bytes)?;
        let format: u32 = input.take("its format")?;
        if format != FORMAT {
            let problem = format!("format {format}, this program reads {FORMAT}");
            return Err(unreadable("its format", &problem));
        }
        stage.check_windows(&input.take::<Vec<WindowSpec>>("windows")?)?;
        let tick;
        (stage.counters, stage.allocated_day, tick, stage.killed) = input.take("totals")?;
        stage.book.set_tick(tick);
        stage.load_model(&mut input)?;
        let goals: SavedGoals = input.take("goals")?;
        if !stage.goals.restore(goals) {
            stage.allocated_day = i64::MIN;
        }
        stage.ledger = Ledger::load(&mut input)?;
        if stage.config.executor == ExecutorMode::DryRun {
            stage.ledger.settle();
        }
        let mut entities = Entities::new(view);
        for (id, account) in input.list::<(EntityId, Account)>("accounts")? {
            entities.info(id, "accounts")?;
            if !account.is_sound() {
                return Err(unreadable("accounts", "a weekday that is none"));
            }
            stage.accounts.insert(id, Arc::new(account));
        }
        stage.load_campaigns(&mut input, &mut entities)?;
        let Stage { goals, book, ledger, .. } = &mut stage;
        stage.wear = Wear::load(&mut input, &mut entities, goals, ledger, book)?;
        for proposal in input.list::<Proposal>("proposals")? {
            entities.info(proposal.row.entity, "proposals")?;
            stage.approvals.add(proposal);
        }
        input.finish()?;
        Ok(stage)
    }

    fn check_windows(&self, saved: &[WindowSpec]) -> Result<(), StageError> {
        if saved == self.config.windows {
            return Ok(());
        }
        let list = |specs: &[WindowSpec]| {
            let names: Vec<String> = specs.iter().map(ToString::to_string).collect();
            names.join(", ")
        };
        Err(StageError::Shape(format!(
            "it was made with the windows {}, and they are now {}; give it the former windows, or \
             start with an empty state folder",
            list(saved),
            list(&self.config.windows)
        )))
    }

    fn load_model(&mut self, input: &mut Reader<'_>) -> Result<(), StageError> {
        let Some((version, json)) = input.take::<Option<(u64, String)>>("model")? else {
            return Ok(());
        };
        let bad = |why: String| unreadable("model", &why);
        let json = serde_json::from_str(&json).map_err(|why| bad(why.to_string()))?;
        let model = ClickModel::from_json(&json).map_err(|why| bad(why.to_string()))?;
        if model.version() != version {
            return Err(bad(format!("version {}, {version} was written", model.version())));
        }
        let model = Arc::new(model);
        self.book.set_model(Some(model.clone()));
        self.model = Some(model);
        Ok(())
    }

    fn load_campaigns(
        &mut self,
        input: &mut Reader<'_>,
        entities: &mut Entities<'_>,
    ) -> Result<(), StageError> {
        const WHAT: &str = "campaigns";
        let (mut campaign_at, mut wakes) = (HashMap::new(), BTreeSet::new());
        type Saved = Option<(EntityId, Memory, Option<Quote>)>;
        let mut campaigns = Vec::new();
        for (at, saved) in input.list::<Saved>(WHAT)?.into_iter().enumerate() {
            let Some((id, memory, quote)) = saved else {
                campaigns.push(None);
                continue;
            };
            let info = entities.info(id, WHAT)?;
            if !self.ledger.has(memory.owner) || info.level != Level::Campaign {
                return Err(unreadable(WHAT, "an owner or entity that is none"));
            }
            if let Some((goal, micros)) = &memory.counted {
                let tenant = info.ancestors[Level::Tenant as usize];
                *self.shared.entry((goal.clone(), tenant)).or_default() += micros;
            }
            if let Some(quote) = quote {
                self.book.set_quote(&info.key, quote);
            }
            let covering = self.goals.covering(&info.key);
            let (wake, order) = (memory.wake, info.order);
            campaigns.push(Some(Campaign { info, covering, memory }));
            wakes.extend(wake.map(|wake| (wake, order, at)));
            campaign_at.insert(id, at);
        }
        self.campaigns = campaigns.into_iter().collect();
        self.campaign_at = Arc::new(campaign_at);
        self.wakes = wakes;
        Ok(())
    }
}
