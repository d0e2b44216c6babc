//! The house stands only as long as its rooms open one way: this fails on any edge that is not in the table.
use cargo_metadata::{DependencyKind, MetadataCommand, Package};
use std::collections::BTreeSet;
use std::path::Path;

/// Rooms from the roof down, with the rooms that each may use.
const ROOMS: [(&str, &[&str]); 7] = [
    ("omnidecode-python", &["omnidecode"]),
    ("omnidecode", &["omnidecode-strategies", "omnidecode-engine", "omnidecode-models", "omnidecode-core"]),
    ("omnidecode-strategies", &["omnidecode-engine", "omnidecode-core"]),
    ("omnidecode-engine", &["omnidecode-models", "omnidecode-core"]),
    ("omnidecode-models", &["omnidecode-kernels", "omnidecode-core"]),
    ("omnidecode-kernels", &["omnidecode-core"]),
    ("omnidecode-core", &[]),
];
/// Rooms that may hold `unsafe`.
const UNSAFE: [&str; 2] = ["omnidecode-kernels", "omnidecode-python"];

fn workspace() -> Vec<Package> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../Cargo.toml");
    let metadata = MetadataCommand::new().manifest_path(manifest).no_deps().exec().expect("cargo metadata runs");
    metadata.workspace_packages().into_iter().cloned().collect()
}

#[test]
fn every_edge_is_in_the_table() {
    let packages = workspace();
    let names: BTreeSet<&str> = packages.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(
        names,
        ROOMS.iter().map(|(name, _)| *name).collect(),
        "a room was added or removed: draw it in ARCHITECTURE.md and here"
    );
    for package in &packages {
        let (level, (_, allowed)) =
            ROOMS.iter().enumerate().find(|(_, room)| room.0 == package.name.as_str()).expect("named above");
        let below: Vec<&str> = ROOMS[level + 1..].iter().map(|(name, _)| *name).collect();
        for dependency in package.dependencies.iter().filter(|d| names.contains(d.name.as_str())) {
            // A test may look at any room below its own; the library may not.
            let may = if dependency.kind == DependencyKind::Development { &below[..] } else { allowed };
            assert!(
                may.contains(&dependency.name.as_str()),
                "{} may not use {}; it may use {may:?}",
                package.name,
                dependency.name
            );
        }
    }
}

#[test]
fn only_released_crates() {
    for package in workspace() {
        for dependency in &package.dependencies {
            let git = dependency.source.as_ref().is_some_and(|s| s.repr.starts_with("git+"));
            assert!(!git, "{} uses {} from git; use a release", package.name, dependency.name);
        }
    }
}

#[test]
fn unsafe_stays_in_its_rooms() {
    for package in workspace() {
        let root = package.targets.iter().find(|t| t.is_lib() || t.is_cdylib()).expect("a library");
        let source = std::fs::read_to_string(&root.src_path).expect("the crate root is readable");
        let forbids = source.contains("#![forbid(unsafe_code)]");
        assert_eq!(forbids, !UNSAFE.contains(&package.name.as_str()), "{}: `#![forbid(unsafe_code)]`", package.name);
    }
}
