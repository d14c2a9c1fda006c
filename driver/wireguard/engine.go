package wireguard

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/drover-vm/drover"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// engine is what does WireGuard: the kernel, or a device in this process.
type engine interface {
	configure(cfg wgtypes.Config) error
	peers() ([]wgtypes.Peer, error)
	// close ends it; the interface goes with it.
	close() error
}

// kernelEngine is an interface of the kernel's.
type kernelEngine struct {
	name string
	ctl  *wgctrl.Client
	nl   *netlink.Handle
}

// openKernel makes one, or takes the one over that a process of ours has left.
// The error is errNoKernel where the kernel has no WireGuard.
func openKernel(nl *netlink.Handle, name string, mtu int) (engine, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, mtu
	err := nl.LinkAdd(&netlink.Wireguard{LinkAttrs: attrs})
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return nil, errNoKernel
	case err != nil && !errors.Is(err, unix.EEXIST): // one of ours, as was checked
		return nil, err
	}
	ctl, err := wgctrl.New()
	if err != nil {
		return nil, err
	}
	return &kernelEngine{name: name, ctl: ctl, nl: nl}, nil
}

var errNoKernel = errors.New("the kernel has no WireGuard")

func (k *kernelEngine) configure(cfg wgtypes.Config) error { return k.ctl.ConfigureDevice(k.name, cfg) }

func (k *kernelEngine) peers() ([]wgtypes.Peer, error) {
	d, err := k.ctl.Device(k.name)
	if err != nil {
		return nil, err
	}
	return d.Peers, nil
}

func (k *kernelEngine) close() error {
	err := k.nl.LinkDel(&netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: k.name}})
	return errors.Join(err, k.ctl.Close())
}

// userEngine is a device in this process.
type userEngine struct{ dev *device.Device }

// openUser makes one on a TUN. What does not fit into the WAN's MTU is
// sent on its own, for the kernel to make fragments of.
func openUser(name string, mtu, wanMTU int, within func(func() error) error, log *slog.Logger) (engine, error) {
	t, err := tun.CreateTUN(name, mtu)
	switch {
	case errors.Is(err, unix.EBUSY):
		return nil, drover.Errorf(drover.Exists, "interface "+name, "another process has it")
	case errors.Is(err, fs.ErrPermission) || errors.Is(err, os.ErrPermission):
		return nil, drover.E(drover.Denied, "interface "+name, err)
	case err != nil:
		return nil, err
	}
	logger := &device.Logger{
		Verbosef: device.DiscardLogf,
		Errorf:   func(format string, args ...any) { log.Warn("wireguard: " + fmt.Sprintf(format, args...)) },
	}
	return &userEngine{dev: device.NewDevice(t, newBind(wanMTU, within), logger)}, nil
}

func (u *userEngine) close() error {
	u.dev.Close()
	<-u.dev.Wait()
	return nil
}

// configure writes the configuration in the protocol of user space WireGuard,
// https://www.wireguard.com/xplatform/.
func (u *userEngine) configure(cfg wgtypes.Config) error {
	var b strings.Builder
	line := func(key string, value any) { fmt.Fprintf(&b, "%s=%v\n", key, value) }
	if cfg.PrivateKey != nil {
		line("private_key", hex.EncodeToString(cfg.PrivateKey[:]))
	}
	if cfg.ListenPort != nil {
		line("listen_port", *cfg.ListenPort)
	}
	for _, p := range cfg.Peers {
		line("public_key", hex.EncodeToString(p.PublicKey[:]))
		if p.UpdateOnly {
			line("update_only", true)
		}
		if p.Remove {
			line("remove", true)
			continue
		}
		if p.Endpoint != nil {
			line("endpoint", p.Endpoint)
		}
		if p.PersistentKeepaliveInterval != nil {
			line("persistent_keepalive_interval", int(p.PersistentKeepaliveInterval.Seconds()))
		}
		if p.ReplaceAllowedIPs {
			line("replace_allowed_ips", true)
		}
		for _, a := range p.AllowedIPs {
			line("allowed_ip", a.String())
		}
	}
	if err := u.dev.IpcSet(b.String()); err != nil {
		return err
	}
	return u.dev.Up()
}

// peers reads what the device says in the same protocol.
func (u *userEngine) peers() ([]wgtypes.Peer, error) {
	text, err := u.dev.IpcGet()
	if err != nil {
		return nil, err
	}
	var all []wgtypes.Peer
	var seconds int64
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		key, value, _ := strings.Cut(lines.Text(), "=")
		if key == "public_key" {
			p := wgtypes.Peer{}
			if _, err := hex.Decode(p.PublicKey[:], []byte(value)); err != nil {
				return nil, err
			}
			all = append(all, p)
		}
		if len(all) == 0 {
			continue
		}
		if err := parsePeerLine(&all[len(all)-1], &seconds, key, value); err != nil {
			return nil, fmt.Errorf("%s=%s: %w", key, value, err)
		}
	}
	return all, nil
}

func parsePeerLine(p *wgtypes.Peer, seconds *int64, key, value string) (err error) {
	switch key {
	case "endpoint":
		var a netip.AddrPort
		if a, err = netip.ParseAddrPort(value); err == nil {
			p.Endpoint = net.UDPAddrFromAddrPort(a)
		}
	case "last_handshake_time_sec":
		*seconds, err = strconv.ParseInt(value, 10, 64)
	case "last_handshake_time_nsec":
		var nano int64
		if nano, err = strconv.ParseInt(value, 10, 64); err == nil && *seconds+nano > 0 {
			p.LastHandshakeTime = time.Unix(*seconds, nano)
		}
	case "rx_bytes":
		p.ReceiveBytes, err = strconv.ParseInt(value, 10, 64)
	case "tx_bytes":
		p.TransmitBytes, err = strconv.ParseInt(value, 10, 64)
	case "allowed_ip":
		var a netip.Prefix
		if a, err = netip.ParsePrefix(value); err == nil {
			p.AllowedIPs = append(p.AllowedIPs, ipNet(a))
		}
	}
	return err
}

func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
