//! Holds docker-compose.yml and its Dockerfile to the program: every image pinned, every command
//! and variable one that the program knows, every configuration one that it accepts.

use crate::args::Cli;
use crate::variables::{CONTROL_PLANE, NODE, Variable};
use clap::{CommandFactory, Parser};
use lorikeet_kit::workspace;
use std::collections::BTreeMap;
use yaml::Node;

/// The part of YAML that the file keeps to: mappings, lists of `- item`, scalars, `["a", "b"]`.
mod yaml {
    use std::collections::BTreeMap;

    #[derive(Debug, Clone, PartialEq)]
    pub enum Node {
        Text(String),
        List(Vec<String>),
        Map(BTreeMap<String, Node>),
    }

    impl Node {
        pub fn get(&self, key: &str) -> Option<&Node> {
            match self {
                Node::Map(map) => map.get(key),
                _ => None,
            }
        }

        pub fn map(&self) -> &BTreeMap<String, Node> {
            let Node::Map(map) = self else { panic!("{self:?} is no mapping") };
            map
        }

        pub fn list(&self) -> &[String] {
            let Node::List(list) = self else { panic!("{self:?} is no list") };
            list
        }

        pub fn text(&self) -> &str {
            let Node::Text(text) = self else { panic!("{self:?} is no scalar") };
            text
        }
    }

    pub fn parse(text: &str) -> Node {
        let lines: Vec<(usize, &str)> = text
            .lines()
            .filter(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'))
            .map(|line| (line.len() - line.trim_start().len(), line.trim()))
            .collect();
        let mut rest = lines.as_slice();
        let node = block(&mut rest, 0);
        assert!(rest.is_empty(), "not understood: {:?}", rest[0]);
        node
    }

    fn block(rest: &mut &[(usize, &str)], indent: usize) -> Node {
        if rest.first().is_some_and(|(at, line)| *at == indent && line.starts_with("- ")) {
            let mut items = Vec::new();
            while let Some((_, line)) = rest.first().filter(|(at, _)| *at == indent) {
                items.push(scalar(line.strip_prefix("- ").expect("an item of the list")));
                *rest = &rest[1..];
            }
            return Node::List(items);
        }
        let mut map = BTreeMap::new();
        while let Some((_, line)) = rest.first().filter(|(at, _)| *at == indent) {
            *rest = &rest[1..];
            let (key, value) = match line.split_once(": ") {
                Some((key, value)) => (key, inline(value)),
                None => (
                    line.strip_suffix(':').unwrap_or_else(|| panic!("not understood: {line}")),
                    match rest.first() {
                        Some((deeper, _)) if *deeper > indent => block(rest, *deeper),
                        _ => Node::Text(String::new()),
                    },
                ),
            };
            assert!(map.insert(key.to_owned(), value).is_none(), "{key} twice");
        }
        Node::Map(map)
    }

    fn inline(value: &str) -> Node {
        if value.starts_with('[') {
            return Node::List(serde_json::from_str(value).expect("a list in JSON's form"));
        }
        Node::Text(scalar(value))
    }

    fn scalar(text: &str) -> String {
        if text.starts_with('"') {
            return serde_json::from_str(text).expect("a string in JSON's form");
        }
        text.to_owned()
    }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(workspace().join(path)).unwrap()
}

fn services() -> BTreeMap<String, Node> {
    yaml::parse(&read("docker-compose.yml")).get("services").unwrap().map().clone()
}

/// Those that run this program, with the image's ENTRYPOINT.
fn own_services() -> Vec<(String, Node)> {
    let own = |node: &Node| {
        let image = node.get("image").unwrap().text();
        image.starts_with("lorikeet:") && node.get("entrypoint").is_none()
    };
    services().into_iter().filter(|(_, node)| own(node)).collect()
}

/// With each `${NAME:?...}` replaced as `.env` would, by the example's values.
fn environment(service: &Node) -> BTreeMap<String, String> {
    let mut values = BTreeMap::new();
    for line in read("deploy/env.example").lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.split_once('=').unwrap();
        values.insert(name.to_owned(), value.to_owned());
    }
    let expand = |text: &str| {
        let Some((before, rest)) = text.split_once("${") else { return text.to_owned() };
        let (reference, after) = rest.split_once('}').unwrap();
        let (name, _) = reference.split_once(":?").expect("a missing value must be an error");
        format!("{before}{}{after}", values.get(name).unwrap_or_else(|| panic!("{name}")))
    };
    let entries = service.get("environment").unwrap().map();
    entries.iter().map(|(name, value)| (name.clone(), expand(value.text()))).collect()
}

fn is_pinned(image: &str) -> bool {
    let Some((_, tag)) = image.rsplit_once(':') else { return false };
    tag.chars().next().is_some_and(|c| c.is_ascii_digit()) && tag.contains('.')
}

#[test]
fn every_image_is_pinned_or_built_here() {
    for (name, service) in services() {
        assert!(is_pinned(service.get("image").unwrap().text()), "{name}");
    }
    let dockerfile = read("deploy/Dockerfile");
    let bases: Vec<&str> = dockerfile.lines().filter_map(|l| l.strip_prefix("FROM ")).collect();
    assert_eq!(bases.len(), 2);
    for base in bases {
        assert!(is_pinned(base.split(' ').next().unwrap()), "{base}");
    }
    let version = format!("lorikeet:{}", env!("CARGO_PKG_VERSION"));
    for (name, service) in own_services() {
        assert_eq!(service.get("image").unwrap().text(), version, "{name}");
    }
    let build = services()["migrate"].get("build").unwrap().clone();
    assert!(workspace().join(build.get("dockerfile").unwrap().text()).is_file());
    assert!(dockerfile.contains(r#"ENTRYPOINT ["lorikeet"]"#));
}

#[test]
fn every_command_and_variable_is_one_that_the_program_takes() {
    assert_eq!(own_services().len(), 4);
    for (name, service) in own_services() {
        let command = service.get("command").unwrap().list();
        let cli = Cli::command();
        let mut subcommand = &cli;
        while let Some(deeper) = command.iter().find_map(|word| subcommand.find_subcommand(word)) {
            subcommand = deeper;
        }
        let mut argv = vec!["lorikeet".to_owned()];
        argv.extend_from_slice(command);
        for (variable, value) in environment(&service) {
            let of_variable =
                |arg: &&clap::Arg| arg.get_env().is_some_and(|env| env == variable.as_str());
            let arg = subcommand.get_arguments().find(of_variable);
            let arg = arg.unwrap_or_else(|| panic!("{name} does not take {variable}"));
            argv.push(format!("--{}={value}", arg.get_long().unwrap()));
        }
        let parsed = Cli::try_parse_from(&argv);
        assert!(parsed.is_ok(), "{name}: {}", parsed.err().unwrap());
    }
}

#[test]
fn the_servers_accept_their_configuration() {
    let services = services();
    let of = |name: &str| environment(&services[name]);
    let (control_plane, node) = (of("control-plane"), of("node"));
    let config = lorikeet_control_plane::Config::from_vars(|name| control_plane.get(name).cloned());
    assert_eq!(config.err(), None);
    let config = lorikeet_inference::config::Config::from_vars(|name| node.get(name).cloned());
    assert_eq!(config.err(), None);

    let known = |table: &[Variable], name: &str| table.iter().any(|v| v.name == name);
    assert!(control_plane.keys().all(|name| known(CONTROL_PLANE, name)));
    assert!(node.keys().all(|name| known(NODE, name)));
    // The node's credential is the one that may only read.
    let store = of("s3");
    assert_eq!(node["LORIKEET_S3_ACCESS_KEY"], store["LORIKEET_S3_READER_ACCESS_KEY"]);
    assert_eq!(control_plane["LORIKEET_S3_ACCESS_KEY"], store["LORIKEET_S3_ACCESS_KEY"]);
    assert_ne!(node["LORIKEET_S3_ACCESS_KEY"], control_plane["LORIKEET_S3_ACCESS_KEY"]);
}

#[test]
fn every_dependency_volume_and_mounted_file_exists() {
    let compose = yaml::parse(&read("docker-compose.yml"));
    let volumes = compose.get("volumes").unwrap().map();
    let services = services();
    for (name, service) in &services {
        for dependency in service.get("depends_on").map(Node::map).into_iter().flatten() {
            assert!(services.contains_key(dependency.0), "{name} needs {}", dependency.0);
        }
        for mount in service.get("volumes").map(Node::list).unwrap_or_default() {
            let source = mount.split(":/").next().unwrap();
            let exists = match source.strip_prefix("./") {
                Some(file) => workspace().join(file).is_file(),
                None => volumes.contains_key(source) || source.starts_with("${LORIKEET_MODELS"),
            };
            assert!(exists, "{name} mounts {source}");
        }
    }
}
