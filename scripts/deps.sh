#!/usr/bin/env bash
# Installs the Debian packages that Drover's lab, tests and demo need.
# Idempotent, and quick when nothing is missing. Needs root on Debian 12.
#
# QEMU and libvirt come from bookworm-backports: QEMU 7.2 of Debian 12 itself
# corrupts guests that run without KVM when they are moved live.
set -euo pipefail

backports=(qemu-system-x86 qemu-utils libvirt-daemon libvirt-daemon-driver-qemu libvirt-daemon-driver-storage libvirt-clients)
main=(iproute2 dnsmasq-base iputils-ping iperf3 rsync casync openssh-client openssh-server util-linux nftables bind9-dnsutils jq socat procps
  debootstrap e2fsprogs zstd postgresql-client postgresql-contrib redis-tools curl debian-archive-keyring
  frr bind9 knot kea-dhcp4-server kea-dhcp6-server haproxy conntrack)

missing() {
  local p
  for p in "${main[@]}"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || echo "$p"
  done
}

older() {
  local p v
  for p in "${backports[@]}"; do
    v=$(dpkg-query -W -f '${db:Status-Status} ${Version}' "$p" 2>/dev/null) || { echo "$p"; continue; }
    case $p in qemu-*) want=1:10.0 ;; *) want=11.3 ;; esac
    [ "${v%% *}" = installed ] && dpkg --compare-versions "${v#* }" ge "$want" || echo "$p"
  done
}

need_main=$(missing)
need_backports=$(older)
if [ -z "$need_main$need_backports" ]; then
  exit 0
fi
if [ "$(id -u)" != 0 ]; then
  echo "deps: need root to install:" $need_main $need_backports >&2
  exit 1
fi
. /etc/os-release
if [ "${VERSION_CODENAME:-}" != bookworm ] && [ -n "$need_backports" ]; then
  echo "deps: this is ${PRETTY_NAME:-not Debian}; install QEMU >= 10.0 and libvirt >= 11.3 yourself, then run again" >&2
  exit 1
fi

export DEBIAN_FRONTEND=noninteractive
# A package that brings udev empties /tmp while apt still uses it.
export TMPDIR=/var/tmp
# Labs and benchmarks start their own libvirtd and sshd, in namespaces: the
# packages' services are not to be started on the machine itself.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod 755 "$policy"
  trap 'rm -f "$policy"' EXIT
fi

apt-get update -q >&2
if [ -n "$need_backports" ] && ! apt-cache policy | grep -q 'a=stable-backports,n=bookworm-backports\|n=bookworm-backports'; then
  # The suite is added to the mirror and key that this machine already uses.
  read -r uri key < <(apt-get indextargets --format '$(REPO_URI) $(SIGNED_BY)' 'Created-By: Packages' 'Codename: bookworm' | head -n 1)
  # Where a source names no key, apt leaves the field as it was asked for.
  case ${key:-} in '$('*) key= ;; esac
  if [ -z "${uri:-}" ]; then
    echo "deps: no Debian bookworm source is configured for apt; add one, then run again" >&2
    exit 1
  fi
  {
    echo "Types: deb"
    echo "URIs: $uri"
    echo "Suites: bookworm-backports"
    echo "Components: main"
    if [ -n "${key:-}" ]; then echo "Signed-By: $key"; fi
  } >/etc/apt/sources.list.d/drover-backports.sources
  apt-get update -q >&2
fi
# The distribution's own come first: backports would otherwise bring newer
# libraries than they can be installed with.
if [ -n "$need_main" ]; then
  apt-get install -y -q --no-install-recommends "${main[@]}" >&2
fi
if [ -n "$need_backports" ]; then
  apt-get install -y -q --no-install-recommends -t bookworm-backports "${backports[@]}" >&2
fi
