//! The lines of the tiers, in columns: as many as there is room and a source for.

use comfy_table::{CellAlignment, Table, presets};

use super::bar::{clock, gauge, pair, percent};
use super::{Style, View, cut};
use crate::link::Link;
use crate::size::human;
use crate::snapshot::DeviceSnapshot;

/// Cells that a bar has, at least and at most.
const BAR: (usize, usize) = (4, 40);
/// What a bar keeps when columns that can be missed are added.
const BAR_KEPT: usize = 10;

/// One line: a tier of a device.
struct Row<'a> {
    device: &'a DeviceSnapshot,
    name: String,
    used: u64,
    limit: u64,
    allocations: u64,
    is_vram: bool,
    /// The link is between the two tiers; what it carries stands once, in the last line.
    is_last: bool,
}

/// Heads of columns that words can stand for.
pub(super) const PER_STEP: &str = "per step";
/// As above.
pub(super) const NAMED: &str = "named GB/s";

/// Columns that belong together: each a head and a cell for each line.
type Columns = Vec<(&'static str, Vec<String>)>;

impl View<'_> {
    /// The head and a line for each tier; and the heads of the columns that could have been missed.
    pub(super) fn grid(
        &self,
        devices: &[DeviceSnapshot],
        most: usize,
        style: Style,
    ) -> (Vec<String>, Vec<&'static str>) {
        let is_wide = most >= 75;
        let gap = if is_wide { 2 } else { 1 };
        let rows = self.rows(devices);
        let cells = |of: &dyn Fn(&Row) -> String| rows.iter().map(of).collect::<Vec<String>>();
        let names = cells(&|r| r.name.clone());
        let used = cells(&|r| pair(r.used, r.limit));
        let percents = is_wide.then(|| ("", cells(&|r| percent(r.used, r.limit))));
        let mut columns: Columns = vec![("used", used)];
        columns.extend(percents);
        columns.push(("allocs", cells(&|r| r.allocations.to_string())));
        let link = self.link_columns(devices, &rows);

        let width = |head: &str, cells: &[String]| {
            let cells = cells.iter().map(|c| c.chars().count());
            cells.chain([head.chars().count()]).max().unwrap_or(0)
        };
        let width_of =
            |columns: &Columns| -> usize { columns.iter().map(|(h, c)| gap + width(h, c)).sum() };
        let name_width = width("greenboost", &names);
        let mut shown = Vec::new();
        for more in [
            self.move_columns(devices, &rows),
            self.heat_columns(devices, &rows),
            self.name_columns(devices, &rows),
        ] {
            let all = [&columns, &more, &link].map(width_of).iter().sum::<usize>();
            if !more.is_empty() && name_width + all + gap + BAR_KEPT <= most {
                shown.extend(more.iter().map(|(head, _)| *head));
                columns.extend(more);
            }
        }
        columns.extend(link);

        let left = most.saturating_sub(name_width + width_of(&columns) + gap);
        let bar = left.clamp(BAR.0, BAR.1);
        let mut head = vec!["greenboost".to_string(), cut(&clock(self.running), bar)];
        head.extend(columns.iter().map(|(head, _)| head.to_string()));
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        table.set_header(head);
        for (n, row) in rows.iter().enumerate() {
            let mut line = vec![
                names[n].clone(),
                gauge(row.used, row.limit, bar, style.unicode),
            ];
            line.extend(columns.iter().map(|(_, cells)| cells[n].clone()));
            table.add_row(line);
        }
        for (n, column) in table.column_iter_mut().enumerate() {
            column.set_padding((if n == 0 { 0 } else { gap as u16 }, 0));
            if n > 1 {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        let lines = table.lines().map(|l| l.trim_end().to_string());
        (lines.collect(), shown)
    }

    fn rows<'a>(&self, devices: &'a [DeviceSnapshot]) -> Vec<Row<'a>> {
        let mut rows = Vec::new();
        for device in devices {
            let has_host = self.has_host(device);
            rows.push(Row {
                device,
                name: format!("GPU {} VRAM", device.device),
                used: device.vram_bytes,
                limit: device.vram_limit,
                allocations: device.vram_allocations,
                is_vram: true,
                is_last: !has_host,
            });
            if has_host {
                rows.push(Row {
                    device,
                    name: format!("GPU {} RAM", device.device),
                    used: device.host_bytes,
                    limit: self.snapshot.ram_limit,
                    allocations: device.host_allocations,
                    is_vram: false,
                    is_last: true,
                });
            }
        }
        rows
    }

    /// What the driver counts on the link.
    fn link_columns(&self, devices: &[DeviceSnapshot], rows: &[Row]) -> Columns {
        let counted = |link: Link| link.received.is_some() || link.sent.is_some();
        if !devices.iter().any(|d| counted(self.link(d))) {
            return Vec::new();
        }
        let cells = |of: fn(Link) -> Option<u64>| {
            let cell = |r: &Row| of(self.link(r.device)).filter(|_| r.is_last);
            rows.iter()
                .map(|r| cell(r).map_or(String::new(), gb))
                .collect()
        };
        vec![
            ("PCIe in", cells(|l| l.received)),
            ("out GB/s", cells(|l| l.sent)),
        ]
    }

    /// What comes into each tier and leaves it.
    fn move_columns(&self, devices: &[DeviceSnapshot], rows: &[Row]) -> Columns {
        if devices.iter().all(|d| d.traffic.moved() == 0) {
            return Vec::new();
        }
        let cells = |is_in: bool| {
            let cell = |r: &Row| match self.rates.get(&r.device.device) {
                Some(rates) if is_in == r.is_vram => gb(rates.promoted),
                Some(rates) => gb(rates.demoted),
                None => String::new(),
            };
            rows.iter().map(cell).collect()
        };
        vec![("moved in", cells(true)), ("out GB/s", cells(false))]
    }

    /// What a step uses of each tier.
    fn heat_columns(&self, devices: &[DeviceSnapshot], rows: &[Row]) -> Columns {
        if devices.iter().all(|d| d.traffic.step_nanos == 0) {
            return Vec::new();
        }
        let heat = |r: &Row| match r.is_vram {
            true => human(r.device.traffic.vram_heat),
            false => self.step_host(r.device),
        };
        let cells = rows.iter().map(heat).collect();
        vec![(PER_STEP, cells)]
    }

    /// What operations name in host memory.
    fn name_columns(&self, devices: &[DeviceSnapshot], rows: &[Row]) -> Columns {
        let named = |d: &DeviceSnapshot| self.rates.get(&d.device)?.named;
        let is_known = |d: &DeviceSnapshot| d.traffic.host_named_bytes > 0 && named(d).is_some();
        if !devices.iter().any(is_known) {
            return Vec::new();
        }
        let cell = |r: &Row| {
            named(r.device)
                .filter(|_| !r.is_vram)
                .map_or(String::new(), gb)
        };
        vec![(NAMED, rows.iter().map(cell).collect())]
    }
}

fn gb(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / 1e9)
}
