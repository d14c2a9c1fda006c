#!/bin/bash
# Builds the Debian guest's disk. It runs as root in mount and process
# namespaces of its own: whatever it mounts or starts ends with it.
#
#	build.sh WORKDIR MIRROR SUITE BYTES RECIPE
#
# WORKDIR is empty; the result is WORKDIR/disk. RECIPE holds the files that
# are copied into the image.
set -euo pipefail
work=$1 mirror=$2 suite=$3 bytes=$4 recipe=$5
root=$work/root

debootstrap --variant=minbase \
	--include=postgresql,redis-server,nginx,qemu-guest-agent,iproute2,procps,iputils-ping \
	"$suite" "$root" ${mirror:+"$mirror"} # without one: debootstrap's own

# Nothing may be started by a package's scripts from here on.
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"

install -D -m 755 "$recipe/rc" "$root/etc/drover/rc"
pg=$(basename "$root"/usr/lib/postgresql/*)
install -m 644 "$recipe/postgresql.conf" "$root/etc/postgresql/$pg/main/conf.d/drover.conf"
install -m 640 "$recipe/pg_hba.conf" "$root/etc/postgresql/$pg/main/pg_hba.conf"
chroot "$root" chown postgres:postgres "/etc/postgresql/$pg/main/pg_hba.conf"
cat "$recipe/redis.conf" >>"$root/etc/redis/redis.conf"
install -m 644 "$recipe/nginx.conf" "$root/etc/nginx/conf.d/drover.conf"
# A download that takes long and costs no space: /1g.
truncate -s 1G "$root/var/www/html/1g"
printf '127.0.0.1 localhost\n::1 localhost\n' >"$root/etc/hosts"
echo drover >"$root/etc/hostname"
: >"$root/etc/resolv.conf"

# A database that pgbench can run on at once (scale 5, 75 MB).
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/dev/shm"
mount -t tmpfs tmpfs "$root/run"
chroot "$root" /etc/drover/rc start-postgresql
chroot "$root" runuser -u postgres -- createdb bench
chroot "$root" runuser -u postgres -- pgbench -q -i -s 5 bench
chroot "$root" /etc/drover/rc stop-postgresql
umount "$root/run" "$root/dev/shm" "$root/proc"

# What a lab guest never reads.
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,man,locale,info}/* \
	"$root"/var/log/*.log "$root"/var/log/*/*.log "$root"/tmp/* "$root/usr/sbin/policy-rc.d"

# Inode tables and journal are written now: the guest's kernel would do it in
# the background, and every machine made from the image would differ by it.
truncate -s "$bytes" "$work/disk"
mke2fs -q -t ext4 -L drover -m 0 -i 65536 -d "$root" \
	-E lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0 "$work/disk"
fallocate --dig-holes "$work/disk"
