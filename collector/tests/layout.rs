//! Maps outlive the agent (`--state.pin`), so the next one has to understand what is in them. This test fails
//! when the definition of a map or of a structure in one changes.
#![allow(clippy::unwrap_used)]

use std::{fs, path::Path};

use cgmeter::kernel::OBJECT;
use collector_common::LAYOUT;

/// [`LAYOUT`], and the digest of what it stands for.
const KNOWN: (u32, u64) = (5, 9_753_455_783_734_563_828);

/// Structures and their sizes, as the sources of `collector-common` have them: without comments.
fn structures() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../collector-common/src");
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    let mut lines = Vec::new();
    for file in files {
        let text = fs::read_to_string(file).unwrap();
        let mut within = false;
        for line in text.lines().map(str::trim) {
            within |= line.starts_with("pub struct ") && line.ends_with('{');
            let is_size = line.contains("size_of::<") || line.starts_with("cell!(");
            let is_number = line.starts_with("pub const ") && line.contains(" = ");
            if (within && !line.starts_with("//")) || is_size || is_number {
                lines.push(line.to_owned());
            }
            within &= line != "}";
        }
    }
    lines
}

/// Maps of the object that are pinned: name, type, sizes of key and value, flags.
fn maps() -> Vec<String> {
    let object = aya_obj::Object::parse(OBJECT).unwrap();
    let mut lines: Vec<String> = object
        .maps
        .iter()
        .filter(|(name, _)| !name.starts_with('.') || *name == ".data.generation")
        .map(|(name, map)| {
            let (key, value, flags) = (map.key_size(), map.value_size(), map.map_flags());
            format!("{name} {} {key} {value} {flags}", map.map_type())
        })
        .collect();
    lines.sort();
    lines
}

#[test]
fn the_number_of_the_layout_stands_for_what_maps_contain() {
    let (structures, maps) = (structures(), maps());
    assert!(structures.len() > 100 && maps.len() > 40);
    // FNV-1a: the same with every compiler.
    let text = [structures, maps].concat().join("\n");
    let digest = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |digest, byte| {
            (digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    let found = (LAYOUT, digest);
    assert_eq!(
        found, KNOWN,
        "what maps contain has changed. If an agent can't go on with the maps of an earlier one any more, raise \
         LAYOUT in collector-common/src/lib.rs. (A map or a member in reserved room that is new does no harm.) \
         Then set KNOWN here to what was found, on the left."
    );
}
