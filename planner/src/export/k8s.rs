//! Kubernetes: a JobSet, one replicated job for each kind of host, and the ConfigMap that tells each pod its ranks.
//!
//! ```text
//!   JobSet NAME          job ib: 2 pods of 8 GPUs on nodes labelled ib        pod i stands for the plan's i-th host of ib
//!                        job roce: 2 pods …
//!   service NAME         headless, made by the JobSet: pod DNS name NAME-<job>-0-<i>.NAME
//!   ConfigMap NAME       start.sh, <job>-<i>.env
//! ```
//! Pods of one job are interchangeable: hosts of a cluster are alike, and the device plugin gives a pod any GPUs of its
//! node, which the container numbers from 0. Source: JobSet `jobset.x-k8s.io/v1alpha2` (CRD of release 0.9 and later).
//!
//! Not here: images, volumes, queues (labels and edits of the manifest).

use serde_json::{Map, Value, json};

use super::roster::{HostSeats, Roster, START};
use super::{Container, Export, File, Refusal, Settings, Target, yaml};
use crate::plan::Plan;

/// etcd takes no larger object; the rest is metadata.
const CONFIG_MAP_BYTES_MAX: usize = 1_000_000;
/// Of a label of a DNS name.
const DNS_LABEL_MAX: usize = 63;

pub(super) fn export(plan: &Plan, settings: &Settings) -> Result<Export, Refusal> {
    let refuse = |what: String, help: &str| Target::K8s.refuses(what, help);
    let container = settings.container.as_ref();
    let container = container.filter(|c| !c.command.is_empty() && !c.image.is_empty()).ok_or_else(|| {
        refuse(
            "a pod needs an image and a command".into(),
            "narrows export PLAN --to k8s --image IMAGE -- COMMAND",
        )
    })?;
    check_name(&settings.name)?;
    let roster = super::roster(plan, Target::K8s, settings)?;
    let components = roster.components();
    let jobs = job_names(&roster, &components);
    let pods = in_pods(roster, &components, &jobs, &settings.name);
    let longest =
        pods.hosts.iter().map(|h| settings.name.len() + h.name.len() + "--0".len()).max().unwrap_or(0);
    if longest > DNS_LABEL_MAX {
        let what = format!("a pod's name would have {longest} characters, of at most {DNS_LABEL_MAX}");
        return Err(refuse(what, "shorten --name or the clusters' names"));
    }
    let map = config_map(&pods, settings);
    let bytes = map.to_string().len();
    if bytes > CONFIG_MAP_BYTES_MAX {
        let what = format!(
            "the environments of {} hosts take {bytes} bytes, a ConfigMap at most {CONFIG_MAP_BYTES_MAX}",
            pods.hosts.len()
        );
        return Err(refuse(what, "export to env, bake its files into the image and start them there"));
    }
    let set = job_set(&pods, &components, &jobs, settings, container);
    let text = format!(
        "# kubectl apply -f this; needs the JobSet controller. Nodes are chosen by the label {}.\n{}---\n{}",
        container.node_label,
        yaml::document(&map),
        yaml::document(&set)
    );
    let mut notes = pods.notes(settings);
    if pods.wrapper().is_some() {
        notes.push("in the pods narrows_nccl.py is /narrows/narrows_nccl.py: -- python /narrows/narrows_nccl.py train.py".into());
    }
    notes.push(format!("label the nodes: {}=<cluster>", container.node_label));
    Ok(Export {
        target: Target::K8s,
        files: vec![File::new("jobset.yaml", text)],
        start: "kubectl apply -f jobset.yaml".into(),
        notes,
    })
}

fn check_name(name: &str) -> Result<(), Refusal> {
    let dns = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.starts_with(|c: char| c.is_ascii_lowercase()) && name.chars().all(dns) && !name.ends_with('-') {
        return Ok(());
    }
    let what = format!("{name:?} cannot be the name of a JobSet");
    Err(Target::K8s.refuses(what, "give --name lower-case letters, digits and inner dashes, a letter first"))
}

/// A DNS label for each component: its cluster, numbered where that is not unique.
fn job_names(roster: &Roster, components: &[Vec<usize>]) -> Vec<String> {
    let clean = |name: &str| -> String {
        let dns = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
        name.chars().map(dns).collect::<String>().trim_matches('-').to_owned()
    };
    let plain: Vec<String> = components.iter().map(|c| clean(&roster.hosts[c[0]].cluster)).collect();
    let unique = |i: usize| plain.iter().filter(|n| **n == plain[i]).count() == 1;
    (0..plain.len())
        .map(|i| if unique(i) { plain[i].clone() } else { format!("{}-x{i}", plain[i]) })
        .collect()
}

/// The roster with pods for hosts and a container's numbers for GPUs.
fn in_pods(mut roster: Roster, components: &[Vec<usize>], jobs: &[String], set: &str) -> Roster {
    for (component, job) in components.iter().zip(jobs) {
        for (pod, &host) in component.iter().enumerate() {
            let host = &mut roster.hosts[host];
            host.name = format!("{job}-{pod}");
            host.address = format!("{set}-{job}-0-{pod}.{set}");
            host.seats.iter_mut().zip(0..).for_each(|(seat, gpu)| seat.gpu = gpu);
        }
    }
    roster
}

fn config_map(pods: &Roster, settings: &Settings) -> Value {
    let mut data = Map::new();
    data.insert("start.sh".into(), START.into());
    for (i, pod) in pods.hosts.iter().enumerate() {
        data.insert(format!("{}.env", pod.name), pods.environment(i, settings).into());
    }
    data.extend(pods.wrapper().map(|file| (file.path, file.text.into())));
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": { "name": settings.name },
        "data": data,
    })
}

fn job_set(
    pods: &Roster,
    components: &[Vec<usize>],
    jobs: &[String],
    settings: &Settings,
    container: &Container,
) -> Value {
    let replicated: Vec<Value> = components
        .iter()
        .zip(jobs)
        .map(|(component, job)| {
            replicated_job(&pods.hosts[component[0]], component.len(), job, settings, container)
        })
        .collect();
    json!({
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": { "name": settings.name },
        "spec": {
            "network": {
                "enableDNSHostnames": true,
                "subdomain": settings.name,
                "publishNotReadyAddresses": true,
            },
            "failurePolicy": { "maxRestarts": 0 },
            "successPolicy": { "operator": "All" },
            "replicatedJobs": replicated,
        },
    })
}

fn replicated_job(
    host: &HostSeats,
    pods: usize,
    job: &str,
    settings: &Settings,
    container: &Container,
) -> Value {
    let mut limits = json!({ "nvidia.com/gpu": host.seats.len() });
    if let (Some(resource), Some(_)) = (&container.rdma_resource, host.fabric()) {
        limits[resource] = 1.into();
    }
    let script = format!(
        "export NARROWS_HOSTS=/narrows NARROWS_HOST={job}-$JOB_COMPLETION_INDEX; exec bash /narrows/start.sh \"$@\""
    );
    let mut command = vec!["bash".to_owned(), "-c".to_owned(), script, "start".to_owned()];
    command.extend(container.command.iter().cloned());
    json!({
        "name": job,
        "replicas": 1,
        "template": { "spec": {
            "completionMode": "Indexed",
            "completions": pods,
            "parallelism": pods,
            "backoffLimit": 0,
            "template": { "spec": {
                "restartPolicy": "Never",
                "nodeSelector": { (&*container.node_label): host.cluster },
                "containers": [{
                    "name": "ranks",
                    "image": container.image,
                    "command": command,
                    "ports": [{ "containerPort": settings.port }],
                    "resources": { "limits": limits },
                    // RDMA registers memory that must stay in place.
                    "securityContext": { "capabilities": { "add": ["IPC_LOCK"] } },
                    "volumeMounts": [
                        { "name": "narrows", "mountPath": "/narrows" },
                        { "name": "shm", "mountPath": "/dev/shm" },
                    ],
                }],
                "volumes": [
                    { "name": "narrows", "configMap": { "name": settings.name } },
                    { "name": "shm", "emptyDir": { "medium": "Memory" } },
                ],
            } },
        } },
    })
}
