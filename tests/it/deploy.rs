//! What stands beside the code to run it (unit, image, manifests) agrees with the code, and with itself.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;
use ipnet::IpNet;
use taskbell::daemon::cli::Cli;
use taskbell::daemon::config::{Config, Sources};
use taskbell::webhook::GuardPolicy;
use yaml_rust2::{Yaml, YamlLoader};

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The first document of a manifest.
fn manifest(name: &str) -> Yaml {
    manifests(name).remove(0)
}

fn manifests(name: &str) -> Vec<Yaml> {
    YamlLoader::load_from_str(&read(&format!("deploy/kubernetes/{name}.yaml"))).unwrap()
}

fn texts(list: &Yaml) -> Vec<&str> {
    list.as_vec().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}

/// Refuses what the command line would refuse.
fn parses(arguments: &[&str]) {
    if let Err(error) = Cli::try_parse_from(std::iter::once("taskbell").chain(arguments.iter().copied())) {
        panic!("{arguments:?}: {error}");
    }
}

/// The configuration that these variables and this file give, with every secret in one directory.
fn configured(environment: &[(&str, &str)], file: &str, secrets: &str) -> Config {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("database-url"), "postgres://taskbell@db/seller").unwrap();
    let placed = |text: &str| text.replace(secrets, directory.path().to_str().unwrap());
    let path: PathBuf = directory.path().join("taskbell.toml");
    std::fs::write(&path, placed(file)).unwrap();
    let environment: BTreeMap<_, _> =
        environment.iter().map(|(name, value)| ((*name).to_owned(), placed(value))).collect();
    Config::load(&Sources { file: Some(path), database_url: None, environment }).unwrap()
}

/// What a line of a unit or of a Dockerfile says behind this word.
fn lines<'a>(text: &'a str, word: &'a str) -> Vec<&'a str> {
    text.lines().filter_map(|line| line.strip_prefix(word)).collect()
}

fn secret_names() -> Vec<String> {
    let secret = manifest("secret.example");
    let names = secret["stringData"].as_hash().unwrap().keys();
    names.map(|name| name.as_str().unwrap().to_owned()).collect()
}

/// For giving back, closing connections and exiting after the grace.
const AFTER_GRACE: Duration = Duration::from_secs(15);

#[test]
fn the_deployment_runs_with_its_config_map_and_agrees_with_it() {
    let pod = manifest("deployment")["spec"]["template"]["spec"].clone();
    let container = &pod["containers"][0];
    parses(&texts(&container["args"]));
    let map = manifest("configmap");
    let file = map["data"]["taskbell.toml"].as_str().unwrap();
    let mounted = container["volumeMounts"][1]["mountPath"].as_str().unwrap();
    let environment: Vec<(&str, &str)> = container["env"]
        .as_vec()
        .unwrap()
        .iter()
        .map(|variable| (variable["name"].as_str().unwrap(), variable["value"].as_str().unwrap()))
        .collect();
    let config = configured(&environment, file, mounted);
    assert!(config.production);

    let port = i64::from(config.admin.port());
    assert!(config.admin.ip().is_unspecified(), "probes come from outside the pod");
    assert_eq!(container["ports"][0]["containerPort"].as_i64(), Some(port));
    assert_eq!(manifest("service")["spec"]["ports"][0]["port"].as_i64(), Some(port));
    let who = manifest("networkpolicy")["spec"]["ingress"].clone();
    assert_eq!(who.as_vec().unwrap().len(), 2, "scrapes, and whoever publishes the keys");
    for allowed in who.as_vec().unwrap() {
        assert_eq!(allowed["ports"].as_vec().unwrap().len(), 1);
        assert_eq!(allowed["ports"][0]["port"].as_i64(), Some(port));
    }
    // A database that is down must neither kill pods nor keep them on a node.
    for (probe, path) in
        [("startupProbe", "/healthz"), ("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")]
    {
        assert_eq!(container[probe]["httpGet"]["path"].as_str(), Some(path), "{probe}");
    }
    let budget = &manifest("poddisruptionbudget")["spec"]["unhealthyPodEvictionPolicy"];
    assert_eq!(budget.as_str(), Some("AlwaysAllow"));

    let until_killed = pod["terminationGracePeriodSeconds"].as_i64().unwrap();
    let until_killed = Duration::from_secs(until_killed.try_into().unwrap());
    assert!(until_killed > config.grace + AFTER_GRACE, "{until_killed:?}");
    for name in file.split('"').filter_map(|text| text.strip_prefix(mounted)) {
        assert!(secret_names().contains(&name[1..].to_owned()), "{name}");
    }
}

#[test]
fn the_networks_that_the_policy_closes_are_those_of_the_guard() {
    let rules = manifest("networkpolicy")["spec"]["egress"].clone();
    let blocks: Vec<(IpNet, Vec<IpNet>)> = rules[0]["to"]
        .as_vec()
        .unwrap()
        .iter()
        .map(|to| {
            let net = |text: &str| -> IpNet { text.parse().unwrap() };
            let but = texts(&to["ipBlock"]["except"]).into_iter().map(net).collect();
            (net(to["ipBlock"]["cidr"].as_str().unwrap()), but)
        })
        .collect();
    let guard = GuardPolicy::default();
    let agrees = |ip: IpAddr| {
        let open =
            |(net, but): &(IpNet, Vec<IpNet>)| net.contains(&ip) && !but.iter().any(|net| net.contains(&ip));
        assert_eq!(blocks.iter().any(open), guard.check_ip(ip).is_ok(), "{ip}");
    };
    for net in blocks.iter().flat_map(|(net, but)| but.iter().chain([net])) {
        [net.network(), net.broadcast()].into_iter().for_each(agrees);
    }
    // Between the edges: an address of each /16, and of each /24 where the guard has networks that small.
    for a in 0..=255 {
        for b in 0..=255 {
            agrees(Ipv4Addr::new(a, b, 7, 1).into());
            if [192, 198, 203].contains(&a) {
                (0..=255).for_each(|c| agrees(Ipv4Addr::new(a, b, c, 1).into()));
            }
        }
    }
    for first in 0..=u16::MAX {
        agrees(Ipv6Addr::new(first, 0x4711, 0, 0, 0, 0, 0, 1).into());
    }
    for second in 0..=u16::MAX {
        agrees(Ipv6Addr::new(0x2001, second, 0, 0, 0, 0, 0, 1).into());
        agrees(Ipv6Addr::new(0x3fff, second, 0, 0, 0, 0, 0, 1).into());
        agrees(Ipv6Addr::new(0x2620, 0x4f, second, 0, 0, 0, 0, 1).into());
    }
}

#[test]
fn the_migrations_pods_reach_the_database_and_nothing_else() {
    let policy = manifests("networkpolicy").remove(1)["spec"].clone();
    let selected = &policy["podSelector"]["matchExpressions"][0];
    assert_eq!(selected["key"].as_str(), Some("app.kubernetes.io/name"));
    for name in ["deployment", "migrate"] {
        let labels = manifest(name)["spec"]["template"]["metadata"]["labels"].clone();
        let label = labels["app.kubernetes.io/name"].as_str().unwrap();
        assert!(texts(&selected["values"]).contains(&label), "{label}");
    }
    assert!(policy["ingress"].is_badvalue(), "nobody");
    let ports = policy["egress"].as_vec().unwrap().iter().flat_map(|rule| rule["ports"].as_vec().unwrap());
    assert_eq!(ports.map(|port| port["port"].as_i64().unwrap()).collect::<Vec<_>>(), [53, 53, 5432]);
}

#[test]
fn the_migration_reads_the_same_secret() {
    let pod = manifest("migrate")["spec"]["template"]["spec"].clone();
    let container = &pod["containers"][0];
    parses(&texts(&container["args"]));
    let variable = &container["env"][0];
    let mounted = container["volumeMounts"][0]["mountPath"].as_str().unwrap();
    let environment = [(variable["name"].as_str().unwrap(), variable["value"].as_str().unwrap())];
    assert!(configured(&environment, "", mounted).database.url.is_some());
    let item = pod["volumes"][0]["secret"]["items"][0]["key"].as_str().unwrap();
    assert!(secret_names().contains(&item.to_owned()));
}

#[test]
fn the_image_runs_as_the_user_whom_the_manifests_name() {
    let image = read("Dockerfile");
    let json = |word: &str| serde_json::from_str::<Vec<String>>(lines(&image, word)[0].trim()).unwrap();
    let user: i64 = lines(&image, "USER ")[0].split(':').next().unwrap().parse().unwrap();
    for name in ["deployment", "migrate"] {
        let pod = manifest(name)["spec"]["template"]["spec"].clone();
        assert_eq!(pod["securityContext"]["runAsUser"].as_i64(), Some(user), "{name}");
        assert_eq!(pod["securityContext"]["runAsNonRoot"].as_bool(), Some(true), "{name}");
        let container = &pod["containers"][0];
        assert_eq!(container["securityContext"]["readOnlyRootFilesystem"].as_bool(), Some(true), "{name}");
    }
    let (name, value) = lines(&image, "ENV ")[0].split_once('=').unwrap();
    let config = configured(&[(name, value)], "", "/nowhere");
    assert_eq!(lines(&image, "EXPOSE "), [config.admin.port().to_string()]);
    let entry = json("ENTRYPOINT");
    assert_eq!(entry, ["/usr/bin/taskbell"]);
    parses(&json("CMD").iter().map(String::as_str).collect::<Vec<_>>());
    let health = image.lines().find(|line| line.starts_with("HEALTHCHECK")).unwrap();
    let health: Vec<String> = serde_json::from_str(health.split_once("CMD ").unwrap().1).unwrap();
    assert_eq!(health[0], entry[0]);
    parses(&health[1..].iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn autoscaling_asks_for_a_metric_that_we_publish() {
    let query = manifest("scaledobject")["spec"]["triggers"][0]["metadata"]["query"].clone();
    assert_eq!(query.as_str(), Some(format!("max({})", taskbell::metrics::OUTBOX_OLDEST_DUE).as_str()));
}

#[test]
fn the_unit_gives_the_daemon_a_configuration_that_it_takes() {
    let unit = read("systemd/taskbell.service");
    let environment: Vec<(&str, &str)> =
        lines(&unit, "Environment=").into_iter().map(|line| line.split_once('=').unwrap()).collect();
    let config = configured(&environment, &read("systemd/taskbell.toml"), "%d");
    assert!(config.production && config.database.url.is_some());
    let credentials: Vec<&str> =
        lines(&unit, "LoadCredential=").into_iter().map(|line| line.split(':').next().unwrap()).collect();
    for (name, value) in environment.iter().filter(|(_, value)| value.starts_with("%d/")) {
        assert!(credentials.contains(&&value[3..]), "{name}");
    }
    let run = lines(&unit, "ExecStart=")[0].strip_prefix("/usr/bin/taskbell ").unwrap();
    parses(&run.split(' ').collect::<Vec<_>>());
    let until_killed = humantime::parse_duration(lines(&unit, "TimeoutStopSec=")[0]).unwrap();
    assert!(until_killed > config.grace + AFTER_GRACE);
}

fn skipped(why: &str) {
    assert!(std::env::var("INTEROP").as_deref() != Ok("required"), "{why}");
    eprintln!("SKIPPED: {why}");
}

#[test]
fn the_unit_is_as_closed_as_systemd_can_tell() {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/taskbell.service");
    let command = ["security", "--offline=true", "--threshold=13", "--no-pager"];
    let Ok(output) = std::process::Command::new("systemd-analyze").args(command).arg(unit).output() else {
        return skipped("there is no systemd-analyze here");
    };
    let says = String::from_utf8_lossy(&output.stdout);
    if !says.contains("Overall exposure level") {
        let error = String::from_utf8_lossy(&output.stderr);
        return skipped(&format!(
            "this systemd-analyze judges no unit by itself (250 is the first): {error}"
        ));
    }
    assert!(output.status.success(), "an exposure above 1.3: {says}");
}
