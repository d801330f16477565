//! The configuration as it is written: one struct for each section of `default.toml`, with the same
//! names. The comments there are the reference; a test holds the two together.

use serde::{Deserialize, Serialize};

use crate::units::{Decimal, Size, Span};

/// Everything, section by section.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What is computed for each entity.
    pub features: Features,
    /// Threads, ticks and queues.
    pub engine: Engine,
    /// Reading files.
    pub replay: Replay,
    /// What is accepted at the door.
    pub validation: Validation,
    /// What report rows mean.
    pub reports: Reports,
    /// When a creative counts as worn out.
    pub fatigue: Fatigue,
    /// When delivery counts as anomalous.
    pub anomaly: Anomaly,
    /// Completeness of conversions that are reported late.
    pub maturity: Maturity,
    /// How decisions are made.
    pub decision: Decision,
    /// Gains and cadence of bid control.
    pub controller: Controller,
    /// When a worn-out creative hands over.
    pub rotation: Rotation,
    /// Limits that no action crosses.
    pub guardrails: Guardrails,
    /// Accounts that are not listed.
    pub account_defaults: AccountDefaults,
    /// Where actions go.
    pub executor: Executor,
    /// The Parquet history.
    pub history: History,
    /// What survives a crash.
    pub state: State,
    /// How the object store of state.remote is reached.
    pub object_store: ObjectStore,
    /// The page and the API.
    pub http: Http,
    /// Several processes that work together.
    pub cluster: Cluster,
    /// The broker.
    pub kafka: Kafka,
    /// What the process says about itself.
    pub telemetry: Telemetry,
    /// Learning a model from history.
    pub learn: Learn,
    /// The simulated market of `omnify demo`.
    pub demo: Demo,
    /// What tenants want of their campaigns.
    pub goals: Vec<Goal>,
    /// Currency and time zone of accounts.
    pub accounts: Vec<Account>,
}

/// Section `[features]`: what is computed for each entity.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Features {
    /// Rolling windows as WIDTH/PANE (the window slides in panes), and the account-local day.
    pub windows: Vec<String>,
    /// Levels of the hierarchy that get features: leave out what nobody reads, it costs time.
    pub levels: Vec<String>,
    /// Count unique users (HyperLogLog), for reach and frequency.
    pub reach: bool,
    /// Days over which reach is counted: a week is the usual frequency-capping horizon.
    pub reach_days: usize,
    /// Impressions that the prior of the shrunk CTR weighs: about one click at usual rates.
    pub prior_impressions: f64,
    /// Clicks that the prior of the shrunk CVR weighs: about one conversion at usual rates.
    pub prior_clicks: f64,
    /// CTR assumed before an entity's parent has any data: a common display average.
    pub prior_ctr: f64,
    /// CVR assumed before an entity's parent has any data: a common e-commerce average.
    pub prior_cvr: f64,
}

/// Section `[engine]`: threads, ticks and queues.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Engine {
    /// Timely worker threads; 0 means one for each core.
    pub workers: usize,
    /// Length of a live tick: how often frames are completed and decided upon.
    pub tick: Span,
    /// One evaluation of an entity that changes in each period of this length; events in between wait
    /// for the next.
    pub decide_every: Span,
    /// Seed of everything that explores; the same journal and seed give the same decisions.
    pub seed: u64,
    /// Events that may wait between ingest and a worker; a full queue slows the source down.
    pub queue_events: usize,
    /// Complete frames that may wait for the decision thread; a full queue slows the workers down.
    pub queue_frames: usize,
    /// Actions that may wait for the executor; beyond it the oldest not yet sent expires.
    pub queue_actions: usize,
    /// Rows that may wait for the history writer; a full queue slows the engine down, never
    /// drops.
    pub queue_history: usize,
}

/// Section `[replay]`: reading files.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Replay {
    /// Tick of foreign files: event times are rounded up to it.
    pub tick: Span,
    /// The same over foreign files.
    pub decide_every: Span,
    /// Rows held back to put slightly disordered files in order; rows later than that pass as late.
    pub reorder_rows: usize,
    /// Rows decoded at a time: large enough to be fast, small enough to bound memory.
    pub batch_rows: usize,
}

/// Section `[validation]`: what is accepted at the door.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Validation {
    /// How far ahead of the clock an event may lie; beyond it, it goes to dead letters. Live only.
    pub future_skew: Span,
    /// How long a click or conversion of an entity without impressions is held before it is
    /// refused.
    pub entity_grace: Span,
    /// How long an event id is remembered to refuse its repetition.
    pub dedup_horizon: Span,
    /// Event ids remembered by all workers together; the older half is forgotten earlier when more
    /// come.
    pub dedup_ids_max: u64,
    /// Report rows about intervals that began longer ago are refused.
    pub restatement_horizon: Span,
    /// Tenants that may send; empty means any.
    pub tenants: Vec<String>,
    /// Longest accepted line of a text file or push; longer ones go to dead letters.
    pub line_bytes_max: Size,
    /// How much of a bad row's original bytes its dead letter keeps.
    pub dead_letter_bytes_max: Size,
    /// Bodies of POST /v1/events larger than this are refused.
    pub request_bytes_max: Size,
}

/// Section `[reports]`: what report rows mean.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Reports {
    /// Whose features are fed by which attribution window; the first entry that covers an account
    /// counts.
    pub attribution: Vec<ReportAttribution>,
}

/// One `[[reports.attribution]]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportAttribution {
    /// Accounts: `tenant[/platform[/account]]`, with `*` for any segment.
    pub accounts: String,
    /// Their window, like `7d_click` or `7d_click_1d_view`.
    pub window: String,
}

/// Section `[fatigue]`: when a creative counts as worn out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Fatigue {
    /// Response below this share of the entity's own baseline counts as worn out.
    pub onset_ratio: f64,
    /// Posterior probability of that before an entity is called worn out.
    pub probability: f64,
    /// Days of the baseline, from the first day with delivery.
    pub baseline_days: u32,
    /// Clicks that make a baseline mature: with 428 a fall of 20 % is seen with 90 % power.
    pub baseline_clicks: i64,
    /// Days compared with the baseline.
    pub recent_days: u32,
    /// Clicks the recent days need before they are compared.
    pub recent_clicks: i64,
}

/// Section `[anomaly]`: when delivery counts as anomalous.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Anomaly {
    /// Hours a series is watched before it may raise an alarm.
    pub warmup_hours: u32,
    /// Score, in mean excesses beyond the usual range, from which delivery is called anomalous.
    pub alarm_score: f64,
    /// Impressions that an hour needs before its cost per click is judged.
    pub impressions_min: i64,
}

/// Section `[maturity]`: completeness of conversions that are reported late.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Maturity {
    /// Learn how late each account's reports count conversions, weight clicks by it and expect the
    /// rest; off takes them as they are.
    pub enabled: bool,
    /// Age at which a click day is final, up to 35d.
    pub settle: Span,
    /// Share of conversions reported within a day of the click day's end, before an account or its
    /// platform has shown it.
    pub prior_first_day: f64,
    /// Mean delay of the others, before it is known.
    pub prior_delay: Span,
    /// Settled click days a curve averages over, the newest weighing most.
    pub memory_days: u32,
    /// Conversions that the platform's curve weighs against the account's own, and the prior
    /// against the platform's.
    pub shrink_conversions: i64,
    /// Standard deviations by which a day's late conversions may miss the curve before it counts
    /// as broken.
    pub break_score: f64,
}

/// Section `[decision]`: how decisions are made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Decision {
    /// Decide at all; off means features only.
    pub enabled: bool,
    /// How far the engine acts alone: autonomous, guided (proposes what is risky) or human_led
    /// (proposes).
    pub autonomy: Autonomy,
    /// Time after which an action that was not executed is stale and expires.
    pub action_ttl: Span,
    /// Time people have to answer a proposal; then it expires, as the numbers behind it are old.
    pub approval_ttl: Span,
    /// Proposals of one tenant that wait at most; at the bound the oldest expires.
    pub approvals_max: usize,
    /// Goals of one tenant that stand at most once more are sent while the engine runs.
    pub goals_max: usize,
    /// Model file written by `omnify learn`; a newer one takes effect within seconds, without a
    /// restart.
    pub model_file: String,
}

/// Section `[controller]`: gains and cadence of bid control.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Controller {
    /// A campaign's bid multipliers move at most this often.
    pub period: Span,
    /// How far ahead the spend plan is aimed at: long enough to smooth, short enough to catch up
    /// today.
    pub horizon: Span,
    /// How late the platform reports spend; 0s where events arrive as they happen.
    pub reporting_lag: Span,
    /// Proportional gain on ln(planned / expected spend).
    pub kp: f64,
    /// Integral gain per hour.
    pub ki: f64,
    /// Bound of the integral, so that a starved campaign does not wind up.
    pub integral_max: f64,
    /// Bound of one error, in natural log units.
    pub error_max: f64,
    /// Smallest change of ln(bid) worth sending.
    pub deadband: f64,
    /// Share of ln(target / KPI) that is corrected within one KPI window.
    pub kpi_gain: f64,
    /// Most by which the multiplier that does not bind may exceed the one that does.
    pub slack: f64,
    /// A campaign without news is looked at again after this long.
    pub review: Span,
    /// Standard deviation of the seeded jitter of ln(bid); 0 never explores.
    pub exploration_sd: f64,
}

/// Section `[rotation]`: when a worn-out creative hands over.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rotation {
    /// Clicks a sibling needs before it may take over from a worn-out creative.
    pub clicks_min: i64,
    /// A blocked rotation or alert is tried again after this long.
    pub retry: Span,
}

/// Section `[guardrails]`: limits that no action crosses.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Guardrails {
    /// Largest single change of a bid or budget, as a share.
    pub step_max: f64,
    /// Largest sum of absolute changes in 24 hours: small steps must not add up to a blow-up.
    pub change_24h_max: f64,
    /// Largest sum of absolute changes in 7 days.
    pub change_7d_max: f64,
    /// Events (conversions, or clicks where the goal counts clicks) that a change needs as
    /// evidence.
    pub events_min: i64,
    /// Probability that a change goes the right way, before it is made.
    pub gain_probability_min: f64,
    /// Share of the conversions that must be reported before a change is made on them, where they
    /// are reported late; 0 goes by the nowcast.
    pub maturity_min: f64,
    /// Shortest time between two changes of one owner.
    pub cooldown: Span,
    /// Matured events that end a campaign's learning phase.
    pub learning_events: i64,
    /// Time since a campaign was first seen that ends its learning phase all the same.
    pub learning_time: Span,
    /// Conversions in the longest window that make a winner, which is never paused without a
    /// person.
    pub winner_conversions: i64,
    /// An account silent for longer is a late feed: nothing is changed on its numbers.
    pub feed_late: Span,
    /// Start with the global kill switch set: computing goes on, no action leaves.
    pub kill: bool,
}

/// Section `[account_defaults]`: accounts that are not listed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AccountDefaults {
    /// Currency of accounts that are not listed under `[[accounts]]`.
    pub currency: String,
    /// Time zone of the calendar day of accounts that are not listed, as in the IANA database.
    pub time_zone: String,
}

/// Section `[executor]`: where actions go.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Executor {
    /// Where actions go: dry_run (nowhere), market (the simulator's ad platform) or kafka.
    pub kind: ExecutorKind,
    /// Base URL of the market's ad platform, for kind = "market".
    pub url: String,
    /// Longest wait for one call.
    pub timeout: Span,
    /// Attempts before an action that fails for a passing reason is given up.
    pub attempts_max: usize,
    /// Wait before the second attempt; it doubles after each.
    pub backoff: Span,
    /// Calls in flight at once, at most one for an owner.
    pub concurrency: usize,
}

/// Section `[history]`: the Parquet history.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct History {
    /// Write the Parquet history.
    pub enabled: bool,
    /// Its folder. `omnify run` goes on with the newest history in it, and begins another where the
    /// configuration has changed.
    pub dir: String,
    /// Rows after which a file is closed.
    pub rows_per_file: usize,
    /// Rows of a Parquet row group.
    pub row_group_rows: usize,
    /// Longest time a file stays open, live.
    pub file_time: Span,
    /// Level of zstd: 1 keeps up with the engine, higher is smaller.
    pub zstd_level: i32,
}

/// Section `[state]`: what survives a crash.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct State {
    /// Keep a journal and snapshots, so that `omnify run` goes on where it was when it was killed.
    pub enabled: bool,
    /// Folder of the journal, the snapshots and the ledger of actions.
    pub dir: String,
    /// Time between two snapshots: a restart replays at most about this much of the journal.
    pub snapshot_every: Span,
    /// Snapshots kept: with two, a damaged one costs nothing but time.
    pub snapshots_kept: usize,
    /// Size at which a segment of the journal is closed.
    pub journal_segment: Size,
    /// Journal kept beyond what a restart needs, by size; the oldest goes first.
    pub journal_bytes_max: Size,
    /// Journal kept beyond what a restart needs, by age.
    pub journal_age_max: Span,
    /// Closed ticks that may wait for the journal; a full queue slows the sources down.
    pub queue_journal: usize,
    /// Longest time that a stop waits for the last snapshot; the journal is complete in any case.
    pub stop_within: Span,
    /// How long the journal and the history try at a full disk before the engine ends (exit code 4).
    pub disk_patience: Span,
    /// Copy all of it and the history to this object store, s3://bucket/prefix or file:///folder, and
    /// start from there on an empty folder; "" is no copy.
    pub remote: String,
    /// How often what is new is copied: the most that the loss of this machine loses, with acknowledge =
    /// "disk".
    pub mirror_every: Span,
    /// What a source is told, and an action waits for: disk (safe from a crash, in milliseconds) or
    /// mirror (safe from the loss of this machine, at the latency of the object store).
    pub acknowledge: Acknowledge,
    /// Journal that may wait to be copied while the object store fails; beyond it the sources wait.
    pub mirror_backlog_max: Size,
}

/// Section `[object_store]`: how the object store is reached. Credentials come from the environment
/// (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, a web identity or container role).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ObjectStore {
    /// Base URL of a store other than AWS; "" is AWS.
    pub endpoint: String,
    /// Region that requests are signed for; "" is AWS_REGION of the environment.
    pub region: String,
    /// The bucket is part of the path, as most stores other than AWS want it, not of the host name.
    pub path_style: bool,
    /// Without TLS: for a store on this machine or a network of its own.
    pub allow_http: bool,
    /// Longest wait for one request, its repetitions included.
    pub timeout: Span,
}

/// Section `[http]`: the page and the API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    /// Serve the page and the API.
    pub enabled: bool,
    /// Address to listen on; only this machine by default.
    pub listen: String,
    /// File with one `TENANT TOKEN` pair for each line; without it, anyone who reaches the port may
    /// read.
    pub tokens_file: String,
    /// Requests served at once; more wait.
    pub concurrency: usize,
    /// Decisions and actions kept for /v1/decisions and /v1/actions.
    pub recent: usize,
}

/// Section `[cluster]`: several processes that work together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cluster {
    /// File with the secret that the processes of `omnify run --processes` prove to each other that
    /// they know: 16 bytes or more, the same everywhere; needed unless all hosts are this machine.
    pub secret_file: String,
    /// Environment variable that holds the secret where `secret_file` is "".
    pub secret_env: String,
    /// A process that gives no sign of life for so long is lost, and all others end.
    pub lost_after: Span,
    /// Whether process 0 reads topics as well; false leaves them to the others.
    pub leader_reads: bool,
}

/// Section `[kafka]`: the broker.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Kafka {
    /// Broker addresses, comma separated; needed for topics, outputs and executor.kind = "kafka".
    pub brokers: String,
    /// How the brokers are reached: plaintext, ssl, sasl_plaintext or sasl_ssl.
    pub security: KafkaSecurity,
    /// How SASL proves who we are: plain, scram_sha_256 or scram_sha_512.
    pub mechanism: KafkaMechanism,
    /// User name of SASL.
    pub username: String,
    /// Environment variable that holds the password of SASL.
    pub password_env: String,
    /// File that holds the password of SASL.
    pub password_file: String,
    /// File with the certificates (PEM) that the brokers' certificates are checked against; "" is
    /// the system's.
    pub ca_file: String,
    /// File with our own certificate (PEM), where the brokers ask for one.
    pub cert_file: String,
    /// File with the private key (PEM) of our own certificate.
    pub key_file: String,
    /// Longest time for a message to be acknowledged.
    pub timeout: Span,
    /// Consumer group: processes of one group share the partitions of its topics.
    pub group: String,
    /// Name of this process in the group, so that a restart does not move partitions; "" is none.
    pub instance: String,
    /// How long the group waits for a process that is silent before its partitions move.
    pub session_timeout: Span,
    /// Messages read ahead of the engine, in bytes; this is all that a topic can take of memory.
    pub fetch_bytes: Size,
    /// Messages that enter together at most.
    pub batch_messages: usize,
    /// How often the group is told how far we are, for lag monitors only; "0s" never.
    pub commit_every: Span,
    /// Topic that refused messages are copied to; "" is none.
    pub dead_letter_topic: String,
    /// Base URL of the schema registry of topics with registry = true.
    pub registry_url: String,
    /// User name of the schema registry, if it asks for one.
    pub registry_username: String,
    /// Environment variable that holds the password of the schema registry.
    pub registry_password_env: String,
    /// File that holds the password of the schema registry.
    pub registry_password_file: String,
    /// Topic that actions are written to.
    pub actions_topic: String,
    /// Topic (compacted, keyed by entity) that features are written to; "" is none.
    pub features_topic: String,
    /// Shortest time between two feature messages of one entity.
    pub features_every: Span,
    /// Topic that alerts are written to; "" is none.
    pub alerts_topic: String,
    /// Makes features and alerts exactly-once by transactions under this id; "" is none.
    pub transactional_id: String,
    /// Topic that tells which tick was committed last, for outputs with a transactional_id.
    pub ticks_topic: String,
    /// Feature rows and alerts that may wait for the brokers; beyond it rows of one entity merge.
    pub queue_outputs: usize,
    /// Topics to read, see the list at the end of `default.toml`.
    pub topics: Vec<KafkaTopic>,
}

/// Section `[telemetry]`: what the process says about itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Telemetry {
    /// Filter of the log, as in RUST_LOG, for example "info,omnify_pipeline=debug".
    pub log: String,
    /// Form of the log on stderr: text or json.
    pub log_format: LogFormat,
}

/// Section `[learn]`: learning a model from history.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Learn {
    /// Age from which the conversions of a click are taken as complete.
    pub conversion_maturity: Span,
    /// Clicks that a model needs to be learned from.
    pub clicks_min: u64,
    /// Passes over the training data.
    pub passes: u32,
}

/// Section `[demo]`: the simulated market of `omnify demo`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Demo {
    /// Tenants in the simulated market.
    pub tenants: usize,
    /// Campaigns of each tenant.
    pub campaigns: usize,
    /// Creatives of each campaign.
    pub creatives: usize,
    /// Impressions a simulated day of the whole market.
    pub impressions_per_day: u64,
    /// Simulated days that pass before the engine may act.
    pub warm_days: u32,
    /// Simulated time for each real second.
    pub speed: Span,
    /// Open the page in the browser.
    pub open: bool,
}

/// How far the engine acts by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Autonomy {
    /// Acts.
    #[default]
    Autonomous,
    /// Acts and notifies.
    Guided,
    /// Proposes and waits for a person.
    HumanLed,
}

/// When something counts as safe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Acknowledge {
    /// On the local disk.
    #[default]
    Disk,
    /// In the copy on the object store.
    Mirror,
}

/// Where actions go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExecutorKind {
    /// Nowhere; the intent is recorded.
    #[default]
    DryRun,
    /// The market simulator's HTTP ad platform.
    Market,
    /// A Kafka topic.
    Kafka,
}

/// How Kafka brokers are reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KafkaSecurity {
    /// Neither encrypted nor authenticated.
    #[default]
    Plaintext,
    /// TLS, with a certificate of our own if one is given.
    Ssl,
    /// A user name and a password, in the clear.
    SaslPlaintext,
    /// A user name and a password over TLS.
    SaslSsl,
}

impl KafkaSecurity {
    /// Whether a user name and a password are asked for.
    pub fn is_sasl(self) -> bool {
        matches!(self, KafkaSecurity::SaslPlaintext | KafkaSecurity::SaslSsl)
    }

    /// Whether the connection is encrypted.
    pub fn is_tls(self) -> bool {
        matches!(self, KafkaSecurity::Ssl | KafkaSecurity::SaslSsl)
    }
}

/// How SASL proves who we are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KafkaMechanism {
    /// The password itself.
    #[default]
    Plain,
    /// Challenge and response with SHA-256.
    #[serde(rename = "scram_sha_256")]
    ScramSha256,
    /// Challenge and response with SHA-512.
    #[serde(rename = "scram_sha_512")]
    ScramSha512,
}

/// What the messages of a topic are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KafkaKind {
    /// Events.
    Events,
    /// Report rows.
    Reports,
    /// Goals, set and removed.
    Goals,
    /// Proposals approved and rejected.
    Approvals,
}

/// Form of the messages of a topic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KafkaFormat {
    /// JSON: one object, an array of them, or one on each line.
    #[default]
    Json,
    /// Avro.
    Avro,
    /// Protobuf.
    Protobuf,
}

/// One `[[kafka.topics]]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KafkaTopic {
    /// Its name.
    pub name: String,
    /// What its messages are.
    pub kind: KafkaKind,
    /// Their form.
    #[serde(default)]
    pub format: KafkaFormat,
    /// Mapping of foreign columns, a name or a file; "" is the engine's own form.
    #[serde(default)]
    pub mapping: String,
    /// File with the schema (.avsc or .proto); "" is the one of the engine's own form.
    #[serde(default)]
    pub schema: String,
    /// Full name of the Protobuf message; "" is the first of the schema.
    #[serde(default)]
    pub message: String,
    /// Messages begin with the id of their schema in the registry.
    #[serde(default)]
    pub registry: bool,
    /// The only tenant whose rows the topic may hold; "" is any.
    #[serde(default)]
    pub tenant: String,
}

/// Form of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One object for each line.
    Json,
}

/// What a goal optimises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// Conversions at a cost per conversion at or below the target.
    TargetCpa,
    /// Revenue at a revenue per cost at or above the target.
    TargetRoas,
    /// Clicks at a cost per click at or below the target.
    TargetCpc,
    /// As many conversions as the budget buys.
    Maximise,
}

/// What a bid buys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pricing {
    /// A thousand impressions.
    #[default]
    Cpm,
    /// A click.
    Cpc,
}

/// One `[[goals]]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Goal {
    /// Unique name.
    pub name: String,
    /// Campaigns it covers: an entity path whose segments may be `*`; what is left out means all
    /// below.
    pub applies_to: String,
    /// What to optimise.
    pub objective: Objective,
    /// Money per conversion or click, or revenue per cost; not for `maximise`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Decimal>,
    /// Money a day for each covered campaign.
    pub daily_budget: Decimal,
    /// Currency of every amount of the goal.
    pub currency: String,
    /// What a bid buys.
    #[serde(default)]
    pub pricing: Pricing,
    /// First day (in the time zone of `account_defaults`) or RFC 3339 time, inclusive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<String>,
    /// First day no longer covered, or RFC 3339 time, exclusive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<String>,
    /// Lowest bid ever set.
    pub bid_floor: Decimal,
    /// Highest bid ever set.
    pub bid_cap: Decimal,
}

/// One `[[accounts]]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Account {
    /// `tenant/platform/account`.
    pub key: String,
    /// ISO 4217 code of every amount the account reports.
    pub currency: String,
    /// IANA name of the time zone of its calendar day.
    pub time_zone: String,
}
