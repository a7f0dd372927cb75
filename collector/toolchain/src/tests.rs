//! These tests need no toolchain.

use super::*;

fn a(name: &str, llvm: u32) -> Compiler {
    Compiler {
        name: name.to_owned(),
        bin: PathBuf::from(name),
        llvm,
    }
}

fn linker(llvm: Option<u32>) -> Option<(PathBuf, Option<u32>)> {
    Some((PathBuf::from("bpf-linker"), llvm))
}

#[test]
fn the_first_compiler_that_the_linker_reads_is_taken() {
    let both = vec![a("nightly", 23), a("debian", 22)];
    for (llvm, name) in [
        (Some(23), "nightly"),
        (Some(22), "debian"),
        (None, "nightly"),
    ] {
        let found = choose(both.clone(), Vec::new(), linker(llvm)).unwrap();
        assert_eq!(found.compiler.name, name);
    }
}

#[test]
fn what_is_missing_is_named() {
    let none = choose(
        Vec::new(),
        vec!["nightly: no source of core".to_owned()],
        linker(None),
    );
    let text = none.unwrap_err().to_string();
    assert!(text.contains("rust-src") && text.contains("(looked at nightly: no source"));

    let error = choose(vec![a("nightly", 23)], Vec::new(), None).unwrap_err();
    assert_eq!(error, Missing::Linker(a("nightly", 23)));

    let error = choose(vec![a("nightly", 23)], Vec::new(), linker(Some(22))).unwrap_err();
    assert_eq!(
        error.to_string(),
        "bpf-linker is made with LLVM 22 and can't read what nightly writes, which has LLVM 23"
    );
}

#[test]
fn versions_of_compilers() {
    let text = "rustc 1.97.0-nightly (e50aa6fba 2026-05-19)\nrelease: 1.97.0-nightly\nLLVM version: 22.1.4\n";
    assert_eq!(versions(text), Some(((1, 97), 22)));
    assert_eq!(versions("rustc 1.0\n"), None);
}

#[test]
fn versions_of_linkers() {
    for text in [
        "libLLVM.so.22\n",
        "libLLVM-22\n",
        "LLVM22.1.8\nLLVM22.1.8\n",
    ] {
        assert_eq!(llvm_named(text), Some(22), "{text}");
    }
    assert_eq!(llvm_named(""), None);
    assert_eq!(llvm_named("libLLVM\n"), None);
}

#[test]
fn a_nested_cargo_inherits_the_network_and_not_the_flags() {
    for name in [
        "PATH",
        "HOME",
        "CARGO_HOME",
        "CARGO_HTTP_CAINFO",
        "CARGO_REGISTRIES_X_INDEX",
    ] {
        assert!(inherited(name), "{name}");
    }
    for name in [
        "CARGO",
        "CARGO_TARGET_DIR",
        "CARGO_ENCODED_RUSTFLAGS",
        "RUSTFLAGS",
        "RUSTC",
    ] {
        assert!(!inherited(name), "{name}");
    }
}

#[test]
fn one_target_folder_for_all_profiles() {
    let root = env::temp_dir().join(format!("ebpf-toolchain-test-{}", std::process::id()));
    let triple = root.join("x86_64-unknown-linux-gnu");
    fs::create_dir_all(triple.join("release/build/a/out")).unwrap();
    for folder in [&root, &triple] {
        fs::write(folder.join("CACHEDIR.TAG"), "").unwrap();
    }
    let found = target_folder(&triple.join("release/build/a/out"));
    assert_eq!(found, Some(root.join("ebpf")));
    fs::remove_dir_all(&root).unwrap();
}
