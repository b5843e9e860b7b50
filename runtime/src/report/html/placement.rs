//! Where the plan put what: clusters as boxes, GPUs with their stage and layers, links drawn beneath like a bus.
//!
//! A link is a line between the columns of its two clusters, one a row, so that any number of clusters and links
//! stays legible at any width.

use narrows_planner::inventory::{Fabric, Link, NicClass};
use narrows_planner::plan::{Plan, Seat};
use narrows_planner::units::human_rate;

use super::markup::{self, Percent, Text};
use crate::report::Report;
use crate::report::amount::{bytes, seconds};

const LINK_HEIGHT_PX: usize = 52;

/// The picture.
pub fn figure(report: &Report) -> String {
    let fabrics = &report.plan.cluster.clusters;
    let boxes: String = fabrics.iter().map(|fabric| cluster(report, fabric)).collect();
    let content = format!(
        "<div class=\"placement\" style=\"--clusters:{}\">\n<div class=\"clusters\">\n{boxes}</div>\n{}</div>\n",
        fabrics.len(),
        links(report)
    );
    let caption = "Colours are replicas; the bar in a GPU is the share of the step it computes, measured.";
    markup::figure("placement", "Placement", caption, &content)
}

fn cluster(report: &Report, fabric: &Fabric) -> String {
    let seats = report.plan.seats();
    let here: Vec<_> = seats.iter().filter(|s| contains(fabric, &s.placement.host)).collect();
    let gpus: String = here.iter().map(|seat| gpu(report, seat)).collect();
    let unused = (fabric.hosts.len() * fabric.gpus as usize).saturating_sub(here.len());
    let unused = match unused {
        0 => String::new(),
        1 => "<p class=\"unused\">1 GPU unused</p>\n".into(),
        n => format!("<p class=\"unused\">{n} GPUs unused</p>\n"),
    };
    format!(
        "<div class=\"cluster\"><h3>{}</h3>\n<p>{} of {} × {}<br>{} {}</p>\n<div class=\"gpus\">\n{gpus}</div>\n{unused}\
         </div>\n",
        Text(&fabric.name),
        if fabric.hosts.len() == 1 { "1 host".into() } else { format!("{} hosts", fabric.hosts.len()) },
        fabric.gpus,
        Text(&fabric.gpu.name),
        nic_class(fabric.nic.class),
        human_rate(fabric.nic.rate_bytes_per_s * f64::from(fabric.nic.count)),
    )
}

fn gpu(report: &Report, seat: &Seat<'_>) -> String {
    let plan = &report.plan;
    let [first, end] = plan.replicas[seat.replica].stages[seat.stage].layers;
    let mut layers = match end.saturating_sub(first) {
        1 => format!("layer {first}"),
        _ => format!("layers {first}–{}", end.saturating_sub(1)),
    };
    if first == 0 {
        layers = format!("embedding, {layers}");
    }
    if end == plan.model.layers {
        layers += ", head";
    }
    format!(
        "<div class=\"gpu replica-{}\"><b>replica {} stage {}</b><span>{}</span><span>rank {} · {}:{}</span>{}</div>\n",
        seat.replica % 6,
        seat.replica,
        seat.stage,
        layers,
        seat.placement.rank,
        Text(&seat.placement.host),
        seat.placement.gpu,
        busy_bar(report, seat.placement.rank),
    )
}

fn busy_bar(report: &Report, rank: u32) -> String {
    let busy = report.comparison.stages.get(rank as usize).and_then(|s| s.busy_s.measured);
    match (busy, report.comparison.iteration_s.measured) {
        (Some(busy), Some(step)) if step > 0.0 => {
            let share = (busy / step).clamp(0.0, 1.0);
            let (percent, words) = (Percent(share), format!("computes {:.0} % of the step", share * 100.0));
            format!(
                "<svg class=\"busy\" role=\"img\" aria-label=\"{words}\" width=\"100%\" height=\"5\">\
                 <rect class=\"all\" width=\"100%\" height=\"5\" rx=\"2\"/>\
                 <rect class=\"part\" width=\"{percent}\" height=\"5\" rx=\"2\" data-tip=\"{words}\"/></svg>"
            )
        }
        _ => String::new(),
    }
}

fn links(report: &Report) -> String {
    let fabrics = &report.plan.cluster.clusters;
    let column = |name: &str| {
        let index = fabrics.iter().position(|f| f.name == name)?;
        Some((index as f64 + 0.5) / fabrics.len() as f64)
    };
    let drawable = report.plan.cluster.links.iter().filter_map(|link| {
        let ends = [column(&link.between[0])?, column(&link.between[1])?];
        Some((link, ends))
    });
    let lines: Vec<String> =
        drawable.enumerate().map(|(row, (l, ends))| line(report, l, ends, row)).collect();
    if lines.is_empty() {
        return String::new();
    }
    format!(
        "<svg class=\"links\" role=\"img\" aria-label=\"Links between clusters\" width=\"100%\" height=\"{}\">\n{}</svg>\n",
        lines.len() * LINK_HEIGHT_PX + 8,
        lines.concat()
    )
}

fn line(report: &Report, link: &Link, [a, b]: [f64; 2], row: usize) -> String {
    let y = row * LINK_HEIGHT_PX + 22;
    let (left, right, middle) = (Percent(a.min(b)), Percent(a.max(b)), Percent((a + b) / 2.0));
    let shared = link.shared_bytes_per_s.map_or_else(String::new, |s| format!(", {} shared", human_rate(s)));
    let crossing = match crossing_bytes(report, link) {
        Some(crossing) => format!("{} a step", bytes(Some(crossing))),
        None => String::new(),
    };
    format!(
        "<line x1=\"{left}\" x2=\"{left}\" y1=\"0\" y2=\"{y}\"/>\
         <line x1=\"{right}\" x2=\"{right}\" y1=\"0\" y2=\"{y}\"/>\
         <line class=\"wire\" x1=\"{left}\" x2=\"{right}\" y1=\"{y}\" y2=\"{y}\"/>\
         <circle cx=\"{left}\" cy=\"{y}\" r=\"4\"/><circle cx=\"{right}\" cy=\"{y}\" r=\"4\"/>\
         <text x=\"{middle}\" y=\"{}\">{}{shared} · {}</text><text class=\"bytes\" x=\"{middle}\" y=\"{}\">{crossing}</text>\n",
        y - 7,
        human_rate(link.rate_bytes_per_s),
        seconds(Some(link.latency_s)),
        y + 17,
    )
}

/// Measured bytes per step between the link's two clusters, both directions.
fn crossing_bytes(report: &Report, link: &Link) -> Option<f64> {
    let plan = &report.plan;
    let crosses = |from, to| match (fabric_of(plan, from), fabric_of(plan, to)) {
        (Some(a), Some(b)) => a != b && link.between.contains(a) && link.between.contains(b),
        _ => false,
    };
    let links = report.comparison.links.iter().filter(|l| crosses(l.from, l.to));
    links.filter_map(|l| l.wire_bytes.measured).reduce(|sum, bytes| sum + bytes)
}

fn fabric_of(plan: &Plan, rank: u32) -> Option<&String> {
    let host = &plan.seats().into_iter().find(|s| s.placement.rank == rank)?.placement.host;
    plan.cluster.clusters.iter().find(|f| contains(f, host)).map(|f| &f.name)
}

fn contains(fabric: &Fabric, host: &str) -> bool {
    fabric.hosts.iter().any(|h| h.name == host)
}

fn nic_class(class: NicClass) -> &'static str {
    match class {
        NicClass::Infiniband => "InfiniBand",
        NicClass::Roce => "RoCE",
        NicClass::Ethernet => "Ethernet",
    }
}
