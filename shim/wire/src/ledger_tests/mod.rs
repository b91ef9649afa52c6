mod control;
mod dead;
mod limits;
mod live;

use crate::ledger::*;

struct Dir(std::path::PathBuf);
impl Dir {
    fn new(name: &str) -> Dir {
        let path = std::env::temp_dir().join(format!("gb-ledger-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).unwrap();
        Dir(path)
    }
    fn file(&self) -> std::path::PathBuf {
        self.0.join(crate::LEDGER_FILE)
    }
}
impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const SETTINGS: Settings = Settings {
    vram_limit: VramLimit::Bytes(1000),
    ram_limit: 500,
    spill: true,
    report: Report::Physical,
    placement: Placement::FirstFit,
    staging: Staging::Auto,
};

fn ledger(name: &str) -> (Dir, &'static Mapped) {
    let dir = Dir::new(name);
    let map = Box::leak(Box::new(Mapped::create(&dir.file(), SETTINGS).unwrap()));
    map.device_index([1; 16], || DeviceFacts {
        total: 2000,
        vram_limit: 1000,
    })
    .unwrap();
    (dir, map)
}

#[test]
fn settings_survive_the_file() {
    let (dir, _) = ledger("settings");
    assert_eq!(Mapped::open(&dir.file()).unwrap().settings(), SETTINGS);
    assert!(Mapped::create(&dir.file(), SETTINGS).is_err());
    std::fs::write(dir.0.join("other"), "short").unwrap();
    assert!(Mapped::open(&dir.0.join("other")).is_err());
    std::fs::write(dir.0.join("zeros"), vec![0; size_of::<Ledger>()]).unwrap();
    assert!(Mapped::open(&dir.0.join("zeros")).is_err());
}
