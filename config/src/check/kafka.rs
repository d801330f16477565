//! What must hold of `[kafka]`.

use std::collections::BTreeSet;

use super::Check;
use crate::schema::{
    Config, ExecutorKind, Kafka, KafkaFormat, KafkaKind, KafkaMechanism, KafkaTopic,
};

/// Longest name of a topic that brokers take.
const TOPIC_CHARS_MAX: usize = 249;

pub(super) fn check(config: &Config, check: &mut Check) {
    let kafka = &config.kafka;
    if kafka.brokers.is_empty() {
        let wants = [
            (config.executor.kind == ExecutorKind::Kafka, "executor.kind is kafka"),
            (!kafka.topics.is_empty(), "kafka.topics has entries"),
            (!kafka.features_topic.is_empty(), "kafka.features_topic is set"),
            (!kafka.alerts_topic.is_empty(), "kafka.alerts_topic is set"),
        ];
        if let Some((_, why)) = wants.iter().find(|(wanted, _)| *wanted) {
            check.problem("kafka.brokers", format!("is empty, but {why}; name the brokers"));
        }
    }
    security(kafka, check);
    check.span("kafka.timeout", kafka.timeout);
    check.span("kafka.session_timeout", kafka.session_timeout);
    check.span("kafka.features_every", kafka.features_every);
    check.at_least_one("kafka.batch_messages", kafka.batch_messages);
    check.at_least_one("kafka.queue_outputs", kafka.queue_outputs);
    check.require(
        kafka.fetch_bytes.bytes() >= 1 << 20,
        "kafka.fetch_bytes",
        "is below 1MiB; a message of the usual limit would not fit",
    );
    check.require(!kafka.group.is_empty(), "kafka.group", "is empty; name the consumer group");
    for (key, topic) in [
        ("kafka.actions_topic", &kafka.actions_topic),
        ("kafka.dead_letter_topic", &kafka.dead_letter_topic),
        ("kafka.features_topic", &kafka.features_topic),
        ("kafka.alerts_topic", &kafka.alerts_topic),
        ("kafka.ticks_topic", &kafka.ticks_topic),
    ] {
        if !topic.is_empty() {
            name(key, topic, check);
        }
    }
    let outputs = !kafka.features_topic.is_empty() || !kafka.alerts_topic.is_empty();
    if outputs && !kafka.transactional_id.is_empty() && kafka.ticks_topic.is_empty() {
        let message = "is empty, but kafka.transactional_id needs it to know where it stopped";
        check.problem("kafka.ticks_topic", message);
    }
    let mut names = BTreeSet::new();
    for (index, topic) in kafka.topics.iter().enumerate() {
        if !names.insert(&topic.name) {
            let message = "is read twice; give each topic one entry";
            check.problem(format!("kafka.topics.{index} ({}).name", topic.name), message);
        }
        self::topic(index, topic, kafka, check);
    }
}

fn security(kafka: &Kafka, check: &mut Check) {
    let named = !kafka.password_env.is_empty() || !kafka.password_file.is_empty();
    match (kafka.security.is_sasl(), kafka.username.is_empty()) {
        (true, true) => {
            let message = "is empty, but kafka.security asks for one";
            check.problem("kafka.username", message);
        }
        (false, false) => {
            let message = "is set, but kafka.security is not sasl_plaintext or sasl_ssl; \
                           the brokers would not see it";
            check.problem("kafka.username", message);
        }
        _ => {}
    }
    if !kafka.username.is_empty() && !named {
        let message = "is set without a password: name kafka.password_env or kafka.password_file";
        check.problem("kafka.username", message);
    }
    if !kafka.security.is_sasl() && kafka.mechanism != KafkaMechanism::Plain {
        let message = "is set, but kafka.security is not sasl_plaintext or sasl_ssl";
        check.problem("kafka.mechanism", message);
    }
    let files = [
        ("kafka.ca_file", &kafka.ca_file),
        ("kafka.cert_file", &kafka.cert_file),
        ("kafka.key_file", &kafka.key_file),
    ];
    for (key, file) in files {
        if !file.is_empty() && !kafka.security.is_tls() {
            check.problem(key, "is set, but kafka.security is not ssl or sasl_ssl");
        }
    }
    if kafka.cert_file.is_empty() != kafka.key_file.is_empty() {
        let message = "is empty: kafka.cert_file and kafka.key_file go together";
        let missing = if kafka.key_file.is_empty() { "kafka.key_file" } else { "kafka.cert_file" };
        check.problem(missing, message);
    }
    let registry =
        !kafka.registry_password_env.is_empty() || !kafka.registry_password_file.is_empty();
    if !kafka.registry_username.is_empty() && !registry {
        let message = "is set without a password: name kafka.registry_password_env or \
                       kafka.registry_password_file";
        check.problem("kafka.registry_username", message);
    }
}

fn name(key: &str, topic: &str, check: &mut Check) {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let dots = topic == "." || topic == "..";
    if topic.is_empty() || topic.len() > TOPIC_CHARS_MAX || dots || !topic.chars().all(legal) {
        let message = format!(
            "`{topic}` is no name of a topic: use 1 to {TOPIC_CHARS_MAX} letters, digits, `.`, \
             `_` and `-`"
        );
        check.problem(key, message);
    }
}

fn topic(index: usize, topic: &KafkaTopic, kafka: &Kafka, check: &mut Check) {
    let at = |key: &str| format!("kafka.topics.{index} ({}).{key}", topic.name);
    name(&at("name"), &topic.name, check);
    let rows = matches!(topic.kind, KafkaKind::Events | KafkaKind::Reports);
    if !rows && !topic.mapping.is_empty() {
        check.problem(at("mapping"), "is only for events and reports; remove it");
    }
    if topic.kind == KafkaKind::Approvals && !topic.tenant.is_empty() {
        check.problem(at("tenant"), "is not for approvals: they do not say whose they are");
    }
    if topic.format == KafkaFormat::Json && !topic.schema.is_empty() {
        check.problem(at("schema"), "is only for avro and protobuf; remove it");
    }
    if topic.format != KafkaFormat::Protobuf && !topic.message.is_empty() {
        check.problem(at("message"), "is only for protobuf; remove it");
    }
    if topic.registry && topic.format != KafkaFormat::Json && kafka.registry_url.is_empty() {
        check.problem(at("registry"), "is true, but kafka.registry_url is empty");
    }
    let foreign = rows && !topic.mapping.is_empty() && topic.format != KafkaFormat::Json;
    if foreign && !topic.registry && topic.schema.is_empty() {
        check.problem(at("schema"), "is missing: a foreign form needs its schema or a registry");
    }
}
