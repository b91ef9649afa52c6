//! `inspect`: the libraries of a program, found as its loader finds them; checked against the loader itself.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::environment::{GREENBOOST, TestEnv, cc, expect, stdout};

fn inspect(env: &TestEnv, program: &Path, path: &str) -> Value {
    let mut command = env.greenboost(["inspect", "--json"]);
    let output = expect(command.arg(program).env("LD_LIBRARY_PATH", path), 0);
    serde_json::from_slice(&output.stdout).unwrap()
}

fn library<'a>(found: &'a Value, name: &str) -> &'a Value {
    let all = found["libraries"].as_array().unwrap();
    let library = all.iter().find(|l| l["name"] == name);
    library.unwrap_or_else(|| panic!("no {name} in {found}"))
}

/// A library that needs others, by these linker flags.
fn make(dir: &Path, name: &str, flags: &[&str]) -> PathBuf {
    fs::create_dir_all(dir).unwrap();
    let path = dir.join(name);
    let soname = format!("-Wl,-soname,{name}");
    let all = [
        &["-shared", "-fPIC", "-Wl,--no-as-needed", &soname][..],
        flags,
    ]
    .concat();
    cc("int x;", &all, &path);
    path
}

#[test]
#[cfg(target_env = "gnu")]
fn as_the_loader_itself_says() {
    let env = TestEnv::new();
    for program in [GREENBOOST, "/usr/bin/env", "/bin/bash", "/bin/ls"] {
        if !Path::new(program).exists() {
            continue;
        }
        let listed = expect(env.program("ldd").arg(program), 0);
        let real = |path: &str| fs::canonicalize(path).unwrap();
        let by_loader: BTreeMap<String, PathBuf> = stdout(&listed)
            .lines()
            .filter_map(|line| {
                let (name, path) = line.trim().split_once(" => ")?;
                Some((name.to_string(), real(path.split(' ').next()?)))
            })
            .collect();
        let found = inspect(&env, Path::new(program), "");
        for (name, path) in by_loader {
            let ours = library(&found, &name)["path"].as_str().unwrap();
            assert_eq!(real(ours), path, "{program}");
        }
    }
}

#[test]
fn runpath_rpath_origin_and_the_variable() {
    let env = TestEnv::new();
    let root = env.file("app");
    let lib = root.join("lib");
    let (deep, other) = (root.join("deep"), root.join("other"));
    make(&deep, "libdeep.so", &[]);
    let other_deep = make(&other, "libdeep.so", &[]);
    let needs_deep = |flag: &str| {
        let dir = format!("-L{}", deep.display());
        make(&lib, "libmid.so", &[&dir, "-ldeep", flag])
    };
    let program = |name: &str, flags: &[&str]| {
        fs::create_dir_all(root.join("bin")).unwrap();
        let path = root.join("bin").join(name);
        let dir = format!("-L{}", lib.display());
        let all = [
            &[
                &dir,
                "-Wl,--no-as-needed",
                "-lmid",
                "-Wl,--allow-shlib-undefined",
                "-Wl,--unresolved-symbols=ignore-in-shared-libs",
            ][..],
            flags,
        ]
        .concat();
        cc("int main(void) { return 0; }", &all, &path);
        path
    };
    const RUNPATH: &str = "-Wl,--enable-new-dtags,-rpath,$ORIGIN/../lib";
    const RPATH: &str = "-Wl,--disable-new-dtags,-rpath,$ORIGIN/../lib:${ORIGIN}/../deep";

    // RUNPATH serves the file that has it, not what its libraries need.
    needs_deep("-Wl,--enable-new-dtags");
    let found = inspect(&env, &program("a", &[RUNPATH]), "");
    assert_eq!(library(&found, "libmid.so")["found_by"], "runpath");
    assert_eq!(library(&found, "libdeep.so")["path"], Value::Null);
    let text = stdout(&expect(
        env.greenboost(["inspect"]).arg(root.join("bin/a")),
        0,
    ));
    assert!(
        text.contains("\nmissing  libdeep.so, which libmid.so needs\n"),
        "{text}"
    );

    // RPATH serves both.
    let with_rpath = program("b", &[RPATH]);
    let found = inspect(&env, &with_rpath, "");
    assert_eq!(library(&found, "libdeep.so")["found_by"], "rpath");
    expect(env.program(&with_rpath).args(["x"]), 0);
    // A link elsewhere to the program: $ORIGIN is where the file is.
    let link = env.file("link");
    std::os::unix::fs::symlink(&with_rpath, &link).unwrap();
    assert_eq!(
        library(&inspect(&env, &link, ""), "libmid.so")["found_by"],
        "rpath"
    );
    expect(&mut env.program(&link), 0);

    // LD_LIBRARY_PATH comes after RPATH and before RUNPATH.
    let path = format!("{}:{}", env.file("nowhere").display(), other.display());
    let found = inspect(&env, &root.join("bin/a"), &path);
    assert_eq!(library(&found, "libdeep.so")["found_by"], "ld-library-path");
    assert_eq!(
        library(&found, "libdeep.so")["path"],
        other_deep.to_str().unwrap()
    );
    let found = inspect(&env, &with_rpath, &path);
    assert_eq!(library(&found, "libdeep.so")["found_by"], "rpath");
    needs_deep("-Wl,--enable-new-dtags,-rpath,$ORIGIN/../deep");
    let found = inspect(&env, &root.join("bin/a"), "");
    assert_eq!(library(&found, "libdeep.so")["found_by"], "runpath");

    // What is not for this machine, or no library at all, is passed over.
    fs::write(other.join("libdeep.so"), "nonsense").unwrap();
    let found = inspect(&env, &root.join("bin/a"), &path);
    assert_eq!(library(&found, "libdeep.so")["found_by"], "runpath");
}

#[test]
fn cuda_behind_a_library() {
    let env = TestEnv::new();
    let lib = env.file("lib");
    make(&lib, "libcudart.so.12", &[]);
    make(
        &lib,
        "libengine.so",
        &[
            &format!("{}/libcudart.so.12", lib.display()),
            "-Wl,-rpath,$ORIGIN",
        ],
    );
    let program = env.file("prog");
    let flags = [
        format!("{}/libengine.so", lib.display()),
        format!("-Wl,-rpath,{}", lib.display()),
    ];
    cc(
        "int main(void) { return 0; }",
        &["-Wl,--no-as-needed", &flags[0], &flags[1]],
        &program,
    );
    let found = inspect(&env, &program, "");
    assert_eq!(found["verdict"], "works");
    assert_eq!(
        found["reason"],
        "it is linked with libengine.so, which needs libcudart.so.12"
    );
}

/// Kernels for sm_86 and PTX for 90, as nvcc lays them out, in a section as it names it.
const KERNELS: &str = "__asm__(\".section .nv_fatbin,\\\"a\\\"\\n.balign 8\\n\
    .long 0xBA55ED50\\n.short 1, 16\\n.quad 144\\n\
    .short 2, 0x101\\n.long 64\\n.quad 8\\n.zero 12\\n.long 86\\n.zero 40\\n\
    .short 1, 0x101\\n.long 64\\n.quad 8\\n.zero 12\\n.long 90\\n.zero 40\\n.previous\\n\");\n\
    int main(void) { return 0; }";

#[test]
fn the_built_in_runtime_and_its_kernels() {
    let env = TestEnv::new();
    let program = env.file("prog");
    cc(KERNELS, &[], &program);
    let found = inspect(&env, &program, "");
    assert_eq!(found["verdict"], "works");
    assert_eq!(found["elf"]["static_runtime_by"], "section .nv_fatbin");
    let text = stdout(&expect(env.greenboost(["inspect"]).arg(&program), 0));
    assert!(
        text.contains("\ncuda     it has the CUDA runtime built in (section .nv_fatbin)\n"),
        "{text}"
    );
    assert!(text.contains("\nkernels  sm_86, compute_90\n"), "{text}");

    let source = "void __cudaRegisterFatBinary(void) {}\nint main(void) { return 0; }";
    cc(source, &[], &program);
    let found = inspect(&env, &program, "");
    assert_eq!(
        found["elf"]["static_runtime_by"],
        "symbol __cudaRegisterFatBinary"
    );
}

#[test]
fn pythons_torch() {
    let env = TestEnv::new();
    let bin = env.file("venv/bin");
    let torch = env.file("venv/lib/python3.12/site-packages/torch");
    fs::create_dir_all(&bin).unwrap();
    fs::create_dir_all(&torch).unwrap();
    fs::write(
        env.file("venv/pyvenv.cfg"),
        "include-system-site-packages = false\n",
    )
    .unwrap();
    fs::copy("/bin/sh", bin.join("python3")).unwrap();
    let version = "__version__ = '2.7.1+cu128'\ncuda: Optional[str] = '12.8'\n";
    fs::write(torch.join("version.py"), version).unwrap();
    // A script that belongs to the environment, as pip writes them.
    let line = format!("#!{}\n", bin.join("python3").display());
    let script = env.executable("serve", line.as_bytes());
    for program in [bin.join("python3"), script] {
        let found = inspect(&env, &program, "");
        assert_eq!(found["python"]["torch"]["version"], "2.7.1+cu128");
        assert_eq!(found["python"]["torch"]["cuda"], "12.8");
        let reason = "it is Python with torch 2.7.1+cu128, built for CUDA 12.8";
        assert_eq!(found["reason"], reason);
    }
}

#[test]
fn a_static_pie_has_a_dynamic_section_and_no_loader() {
    let env = TestEnv::new();
    let program = env.file("prog");
    cc("int main(void) { return 9; }", &["-static-pie"], &program);
    let found = inspect(&env, &program, "");
    assert_eq!(found["elf"]["linking"], "static-pie");
    assert_eq!(found["elf"]["interpreter"], Value::Null);
    assert!(found["libraries"].as_array().unwrap().is_empty());
    expect(env.greenboost(["run", "--"]).arg(&program), 9);
}
