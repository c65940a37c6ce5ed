//! Where a process belongs: its container, and the service that it says it is.
//!
//! The container is what its control group is called after; what it says of itself are the variables of OpenTelemetry in its environment.
//! Both are read once, when the process is sampled first. Nothing else of an environment is looked at or kept, since there are secrets in it.

use crate::{export::text::plain, procfs, resource::Resource};

/// Most bytes of an environment that are searched.
const ENVIRONMENT_LIMIT: u64 = 256 << 10;
/// Most bytes of /proc/PID/cgroup.
const CGROUP_LIMIT: u64 = 16 << 10;
/// Most attributes that a process may have by its own word.
const MAX_ATTRIBUTES: usize = 32;
/// Most characters of a key or a value.
const MAX_TEXT: usize = 256;

/// What a process may not say of itself, since it is known.
const KNOWN: [&str; 5] = ["process.", "host.", "os.", "container.id", "k8s.pod.uid"];

/// See the [module documentation](self).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origin {
    /// Name of the service.
    pub service: String,
    /// Attributes of its resource, no key twice.
    pub attributes: Vec<(String, String)>,
}

impl Origin {
    /// Of a process, as far as it can be read.
    pub fn of(pid: u32) -> Self {
        let pid = procfs::thread_with_memory(pid);
        let cgroup = procfs::read(format!("/proc/{pid}/cgroup"), CGROUP_LIMIT).unwrap_or_default();
        let environment = procfs::read(format!("/proc/{pid}/environ"), ENVIRONMENT_LIMIT).unwrap_or_default();
        Self::new(&String::from_utf8_lossy(&cgroup), &environment)
    }

    fn new(cgroup: &str, environment: &[u8]) -> Self {
        let variable = |name: &str| {
            let pairs = environment.split(|&byte| byte == 0);
            let mut values = pairs.filter_map(|pair| pair.strip_prefix(name.as_bytes())?.strip_prefix(b"="));
            values.next().map(String::from_utf8_lossy)
        };
        let mut attributes = Vec::new();
        let container = cgroup.lines().find_map(container_of);
        let pod = cgroup.lines().find_map(pod_of);
        if let Some(id) = container {
            attributes.push(("container.id".to_owned(), id));
        }
        if let Some(uid) = &pod {
            attributes.push(("k8s.pod.uid".to_owned(), uid.clone()));
        }
        let own = Resource::read(
            variable("OTEL_SERVICE_NAME").as_deref(),
            variable("OTEL_RESOURCE_ATTRIBUTES").as_deref(),
        );
        let may_say = |key: &str| !KNOWN.iter().any(|known| key.starts_with(known));
        for (key, value) in own
            .attributes
            .iter()
            .filter(|(key, _)| may_say(key))
            .take(MAX_ATTRIBUTES)
        {
            attributes.push((plain(key, MAX_TEXT), plain(value, MAX_TEXT)));
        }
        // Kubernetes gives a pod's name to its containers as their host name.
        if let (Some(_), Some(_), Some(name)) =
            (&pod, variable("KUBERNETES_SERVICE_HOST"), variable("HOSTNAME"))
            && !attributes.iter().any(|(key, _)| key == "k8s.pod.name")
        {
            attributes.push(("k8s.pod.name".to_owned(), plain(&name, MAX_TEXT)));
        }
        Self {
            service: own
                .service_name
                .map(|name| plain(&name, MAX_TEXT))
                .unwrap_or_default(),
            attributes,
        }
    }
}

/// The container of a line of /proc/PID/cgroup: `0::PATH`, or `N:CONTROLLERS:PATH`. It is the innermost part of the path that ends in 64 hexadecimal
/// digits, as docker, containerd, cri-o and podman call them; `docker-ID.scope`, `cri-containerd-ID.scope`, `crio-ID.scope`, `libpod-ID.scope`,
/// `pod…:cri-containerd:ID`, or the bare ID. A monitor of a container is not in it.
fn container_of(line: &str) -> Option<String> {
    let path = line.splitn(3, ':').nth(2)?;
    path.rsplit('/').find_map(container_in).map(str::to_owned)
}

/// The container that a control group of this name is of; see [`container_of`].
pub(crate) fn container_in(name: &str) -> Option<&str> {
    const LENGTH: usize = 64;
    let name = name.strip_suffix(".scope").unwrap_or(name);
    let (prefix, id) = name.split_at_checked(name.len().checked_sub(LENGTH)?)?;
    let is_id = id
        .bytes()
        .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    let is_prefix = prefix.is_empty() || prefix.ends_with(['-', ':']);
    (is_id && is_prefix && !prefix.contains("conmon")).then_some(id)
}

/// The pod of such a line: `kubepods-burstable-podUID.slice` with `_` for `-`, or `podUID`.
fn pod_of(line: &str) -> Option<String> {
    let path = line.splitn(3, ':').nth(2)?;
    let mut parts = path.split('/');
    parts.find(|part| part.starts_with("kubepods"))?;
    path.split('/').find_map(|part| {
        let part = part.strip_suffix(".slice").unwrap_or(part);
        let (before, uid) = part.rsplit_once("pod")?;
        let is_uid = uid.len() >= 32
            && uid
                .bytes()
                .all(|byte| byte.is_ascii_hexdigit() || matches!(byte, b'-' | b'_'));
        let is_pod = before.is_empty() || before.ends_with('-');
        (is_uid && is_pod).then(|| uid.replace('_', "-"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "3f4e1a0c9b7d2e58a6c4b1f09d8e7c6b5a4f3e2d1c0b9a8f7e6d5c4b3a291807";
    const UID: &str = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9";

    fn attribute(cgroup: &str, key: &str) -> Option<String> {
        let origin = Origin::new(cgroup, b"");
        let found = origin.attributes.into_iter().find(|(other, _)| other == key);
        found.map(|(_, value)| value)
    }

    #[test]
    fn every_runtime_has_its_own_way_to_call_a_container() {
        let dashed = UID.replace('-', "_");
        for (cgroup, pod) in [
            // docker on v2 with systemd, with cgroupfs, and on v1
            (format!("0::/system.slice/docker-{ID}.scope"), false),
            (format!("0::/docker/{ID}"), false),
            (
                format!("12:pids:/docker/{ID}\n1:name=systemd:/docker/{ID}\n0::/"),
                false,
            ),
            // containerd under Kubernetes
            (
                format!(
                    "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{dashed}.slice/cri-containerd-{ID}.scope"
                ),
                true,
            ),
            (format!("4:memory:/kubepods/besteffort/pod{UID}/{ID}"), true),
            (
                format!("0::/kubepods-pod{dashed}.slice:cri-containerd:{ID}"),
                false,
            ),
            // cri-o
            (
                format!("0::/kubepods.slice/kubepods-pod{dashed}.slice/crio-{ID}.scope"),
                true,
            ),
            // podman, which may put one more level inside
            (format!("0::/machine.slice/libpod-{ID}.scope/container"), false),
            (
                format!("0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope"),
                false,
            ),
        ] {
            assert_eq!(
                attribute(&cgroup, "container.id").as_deref(),
                Some(ID),
                "{cgroup}"
            );
            let found = attribute(&cgroup, "k8s.pod.uid");
            assert_eq!(found.as_deref(), pod.then_some(UID), "{cgroup}");
        }
        for cgroup in [
            "0::/user.slice/user-1000.slice/session-2.scope".to_owned(),
            "0::/system.slice/nginx.service".to_owned(),
            format!("0::/machine.slice/libpod-conmon-{ID}.scope"),
            format!("0::/system.slice/x{ID}.scope"),
            format!("0::/system.slice/{}.scope", ID.to_uppercase()),
            "0::/".to_owned(),
            String::new(),
        ] {
            assert_eq!(attribute(&cgroup, "container.id"), None, "{cgroup}");
        }
    }

    #[test]
    fn a_process_says_what_it_is_and_nothing_that_is_known_better() {
        let environment = b"PATH=/bin\0SECRET=x\0OTEL_SERVICE_NAME=shop\0\
            OTEL_RESOURCE_ATTRIBUTES=service.name=no,service.version=1.2,process.pid=1,host.name=liar,container.id=0\0";
        let origin = Origin::new("0::/", environment);
        assert_eq!(origin.service, "shop");
        assert_eq!(
            origin.attributes,
            [("service.version".to_owned(), "1.2".to_owned())]
        );
        assert_eq!(
            Origin::new("", b"OTEL_RESOURCE_ATTRIBUTES=service.name=a%20b").service,
            "a b"
        );
        assert_eq!(Origin::new("", b"\xff\xfe=\0="), Origin::default());
        let many: String = (0..1000).map(|i| format!("a{i}=b,")).collect();
        let many = format!("OTEL_RESOURCE_ATTRIBUTES={many}");
        assert_eq!(Origin::new("", many.as_bytes()).attributes.len(), MAX_ATTRIBUTES);
    }

    #[test]
    fn a_pod_has_the_name_that_its_containers_have() {
        let cgroup = format!("4:memory:/kubepods/besteffort/pod{UID}/{ID}");
        let environment = b"HOSTNAME=shop-7d\0KUBERNETES_SERVICE_HOST=10.0.0.1\0";
        let origin = Origin::new(&cgroup, environment);
        assert!(
            origin
                .attributes
                .contains(&("k8s.pod.name".into(), "shop-7d".into()))
        );
        assert!(Origin::new("0::/", environment).attributes.is_empty());
    }

    #[test]
    fn reads_a_living_process() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .env("OTEL_SERVICE_NAME", "sleeper")
            .spawn()
            .unwrap();
        let mut service = String::new();
        // Between fork and exec it has this program's environment.
        for _ in 0..200 {
            service = Origin::of(child.id()).service;
            if !service.is_empty() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(service, "sleeper");
    }
}
