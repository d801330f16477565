//! The Helm chart, rendered by `helm`: what it hands to the program is what the program takes.
//!
//! Runs when `OMNIFY_HELM` names the program `helm`; `OMNIFY_KUBECONFORM` may name `kubeconform`, which
//! checks the rendered files against the schemas of Kubernetes:
//! ```text
//! go install helm.sh/helm/v3/cmd/helm@v3.16.4
//! OMNIFY_HELM="$(go env GOPATH)/bin/helm" cargo test -p omnify-bench --test chart
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use clap::Parser as _;
use omnify_config::Layers;
use omnify_pipeline::cli::Cli;
use omnify_pipeline::cluster::Members;

/// The text of a block scalar `key: |` of a rendered file.
fn block(yaml: &str, key: &str) -> Option<String> {
    let mut lines = yaml.lines().skip_while(|line| line.trim() != format!("{key}: |"));
    let indent = |line: &str| line.len() - line.trim_start().len();
    let depth = indent(lines.next()?);
    let within = |line: &&str| line.trim().is_empty() || indent(line) > depth;
    let text: Vec<&str> = lines.take_while(within).collect();
    Some(text.iter().map(|line| format!("{}\n", line.trim())).collect())
}

/// The rendered objects by kind and name.
fn objects(yaml: &str) -> BTreeMap<(String, String), String> {
    let field = |object: &str, name: &str| {
        let line = object.lines().find_map(|line| line.trim().strip_prefix(name));
        line.map(str::trim).unwrap_or_default().to_owned()
    };
    let objects = yaml.split("\n---").filter(|object| object.contains("kind: "));
    objects
        .map(|object| ((field(object, "kind: "), field(object, "name: ")), object.to_owned()))
        .collect()
}

#[test]
fn what_the_chart_renders_is_what_the_program_takes() {
    let program = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let Some(helm) = program("OMNIFY_HELM") else {
        eprintln!("skipped: OMNIFY_HELM is not set");
        return;
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let out = tempfile::tempdir().unwrap();
    let mut check = Command::new(root.join("deploy/helm/check.sh"));
    check.arg(helm).arg(out.path()).args(program("OMNIFY_KUBECONFORM"));
    assert!(check.status().unwrap().success());
    for processes in [1, 3] {
        let yaml = fs::read_to_string(out.path().join(format!("{processes}.yaml"))).unwrap();
        let objects = objects(&yaml);
        let object = |kind: &str, name: &str| {
            let found = objects.get(&(kind.to_owned(), name.to_owned()));
            found.unwrap_or_else(|| panic!("no {kind} {name}: {:?}", objects.keys()))
        };
        let config = block(object("ConfigMap", "ads-config"), "omnify.toml").unwrap();
        let layers = Layers::new().text("omnify.toml", &config).unwrap();
        let config = layers.set("engine.workers=2").unwrap().build().unwrap().validate().unwrap();
        assert_eq!(config.cluster.secret_file, "/run/secrets/omnify/cluster");
        let engine = object("StatefulSet", "ads");
        assert!(engine.contains("replicas: 1") && engine.contains("volumeClaimTemplates"));
        object("PodDisruptionBudget", "ads");
        if processes == 1 {
            assert!(
                engine
                    .contains("args: [run, -c, /etc/omnify/omnify.toml, --set, engine.workers=2]")
            );
            assert!(!yaml.contains("hosts"));
            continue;
        }
        let hosts = out.path().join("hosts");
        fs::write(&hosts, block(object("ConfigMap", "ads-config"), "hosts").unwrap()).unwrap();
        let lent = object("StatefulSet", "ads-lent");
        assert!(lent.contains("replicas: 2") && !lent.contains("volumeClaimTemplates"));
        assert!(lent.contains("podManagementPolicy: Parallel"));
        assert!(object("Service", "ads-peers").contains("clusterIP: None"));
        for (set, pods) in [(engine, ["ads-0"].as_slice()), (lent, &["ads-lent-0", "ads-lent-1"])] {
            for (ordinal, pod) in pods.iter().enumerate() {
                // What the pod's shell makes of its command, with the program's name in its place.
                let command =
                    set.split("exec omnify").nth(1).unwrap().split("ports:").next().unwrap();
                let shell = Command::new("sh")
                    .args(["-c", &format!("echo {}", command.replace('\n', " "))])
                    .env("HOSTNAME", pod)
                    .output()
                    .unwrap();
                let text = String::from_utf8(shell.stdout).unwrap();
                let words: Vec<&str> = text.split_whitespace().collect();
                let after = |option: &str| {
                    let at = words.iter().position(|word| *word == option);
                    words[at.unwrap_or_else(|| panic!("no {option} in {text}")) + 1]
                };
                assert_eq!(words[0], "run");
                let process: usize = after("--process").parse().unwrap();
                assert_eq!(process, ordinal + usize::from(pod.contains("lent")), "{pod}");
                let count = after("--processes").parse().unwrap();
                assert_eq!(count, processes);
                let members = Members::read(count, process, &hosts).unwrap();
                assert_eq!(members.leads(), *pod == "ads-0");
                // The line of the hosts file is the pod's own name at the headless service.
                let own = fs::read_to_string(&hosts).unwrap();
                let own = own.lines().nth(process).unwrap().to_owned();
                assert!(own.starts_with(&format!("{pod}.ads-peers:7000")), "{own}");
                let parsed = Cli::try_parse_from(["omnify"].iter().chain(&words));
                assert!(parsed.is_ok(), "{text}: {}", parsed.err().unwrap());
            }
        }
    }
}
