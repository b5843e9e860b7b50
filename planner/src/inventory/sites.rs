//! One `[[link]]` for many pairs of clusters:
//!
//! ```text
//!   between = ["ib", "roce"]       the two clusters
//!   between = ["oslo", "paris"]    each cluster of the one site with each of the other
//!   between = ["oslo", "roce"]     each cluster of the site with that cluster
//!   between = ["oslo", "oslo"]     every two clusters of the site
//! ```
//! Sites are a way of writing: the resolved inventory has links between clusters alone.
//!
//! Not here: what the pairs must hold (`check`): a cluster joined to itself, a pair joined twice.

use super::check::unknown_end;
use crate::input::{Fault, way};

/// The names that a link may join.
pub(super) struct Sites {
    clusters: Vec<String>,
    /// Each with its clusters.
    sites: Vec<(String, Vec<String>)>,
}

impl Sites {
    /// From each cluster's name and site. A site may not have the name of a cluster: a link could mean either.
    pub(super) fn new(named: &[(&str, Option<&str>)]) -> Result<Self, Fault> {
        let clusters: Vec<String> = named.iter().map(|(cluster, _)| cluster.to_string()).collect();
        let mut sites: Vec<(String, Vec<String>)> = Vec::new();
        for (i, (cluster, site)) in named.iter().enumerate() {
            let Some(site) = *site else { continue };
            if clusters.iter().any(|name| name == site) {
                let what = format!("the site `{site}` has the name of a cluster");
                return Err(Fault::at(way!["cluster", i, "site"], what).hint("rename either"));
            }
            match sites.iter_mut().find(|(name, _)| name == site) {
                Some((_, members)) => members.push(cluster.to_string()),
                None => sites.push((site.into(), vec![cluster.to_string()])),
            }
        }
        Ok(Sites { clusters, sites })
    }

    /// The pairs of clusters that a link between two names joins.
    pub(super) fn pairs(&self, between: &[String; 2]) -> Result<Vec<[String; 2]>, Fault> {
        let (from, to) = (self.end(between, 0)?, self.end(between, 1)?);
        if between[0] != between[1] || from == [between[0].as_str()] {
            let pair = |(a, b): (&String, &String)| [a.clone(), b.clone()];
            return Ok(from.iter().flat_map(|a| to.iter().map(move |b| (a, b))).map(pair).collect());
        }
        if let [alone] = &from[..] {
            let what =
                format!("the site `{}` has one cluster, `{alone}`: there is nothing to join", between[0]);
            return Err(
                Fault::at(way!["between"], what).hint("inside a cluster everything reaches everything")
            );
        }
        let after = |i: usize| from[i + 1..].iter().map(move |b| (i, b));
        Ok((0..from.len()).flat_map(after).map(|(i, b)| [from[i].clone(), b.clone()]).collect())
    }

    /// The clusters that one end of a link means.
    fn end(&self, between: &[String; 2], end: usize) -> Result<Vec<String>, Fault> {
        let name = &between[end];
        if let Some((_, members)) = self.sites.iter().find(|(site, _)| site == name) {
            return Ok(members.clone());
        }
        if self.clusters.contains(name) {
            return Ok(vec![name.clone()]);
        }
        let known = self.sites.iter().map(|(site, _)| site).chain(&self.clusters);
        Err(unknown_end(end, name, &known.map(String::as_str).collect::<Vec<_>>()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(a: &str, b: &str) -> Result<String, Fault> {
        let named = [("ib", Some("oslo")), ("roce", Some("oslo")), ("slow", Some("rome")), ("lab", None)];
        let pairs = Sites::new(&named)?.pairs(&[a.into(), b.into()])?;
        Ok(pairs.iter().map(|pair| pair.join("~")).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn a_site_stands_for_its_clusters() {
        for (a, b, joined) in [
            ("ib", "lab", "ib~lab"),
            ("oslo", "rome", "ib~slow roce~slow"),
            ("lab", "oslo", "lab~ib lab~roce"),
            ("oslo", "oslo", "ib~roce"),
            ("ib", "ib", "ib~ib"),
        ] {
            assert_eq!(pairs(a, b).as_deref(), Ok(joined), "{a} {b}");
        }
    }

    #[test]
    fn what_no_link_can_join_is_named() {
        let told = |a, b| pairs(a, b).expect_err("no pairs").to_string();
        assert_eq!(told("osol", "lab"), "the link joins `osol`, but no cluster has that name");
        assert_eq!(told("rome", "rome"), "the site `rome` has one cluster, `slow`: there is nothing to join");
        assert!(Sites::new(&[("a", Some("b")), ("b", None)]).is_err());
    }
}
