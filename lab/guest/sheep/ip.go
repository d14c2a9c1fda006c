package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The guest's own ip(8): as much of iproute2's as changes addresses and routes,
// with its words and its exit status. Messages are about the same.
//
//	ip -V
//	ip [-4|-6] COMMAND
//	ip -batch -      reads COMMANDs from standard input, up to one that fails
//
//	address {add|replace|change|del} ADDR[/LEN] dev NAME
//	        [nodad] [noprefixroute] [valid_lft T] [preferred_lft T]
//	route   {add|replace|del} {PREFIX|default} [via ADDR] [dev NAME] [src ADDR]
//	        [onlink] [metric N] [proto N]
//
// Objects and verbs may be cut short to addr, a, route and r.

// Exit statuses of iproute2: bad usage, refused by the kernel, failed in a batch.
const (
	ipBadUsage = 255
	ipRefused  = 2
	ipBatch    = 1
)

// usageError is a command that is no command.
type usageError struct{ error }

func badUsage(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// ipCommand runs one invocation and returns its exit status.
func ipCommand(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	switch {
	case len(args) == 1 && (args[0] == "-V" || args[0] == "-Version"):
		_, _ = fmt.Fprintln(stdout, "ip utility, the sheep's own")
		return 0
	case len(args) == 2 && (args[0] == "-batch" || args[0] == "-b") && args[1] == "-":
		return ipCommands(stdin, stderr)
	}
	if len(args) > 0 && (args[0] == "-4" || args[0] == "-6") {
		args = args[1:] // the family is plain from the addresses
	}
	err := ipRun(args)
	if err == nil {
		return 0
	}
	_, _ = fmt.Fprintln(stderr, err)
	if errors.As(err, new(usageError)) {
		return ipBadUsage
	}
	return ipRefused
}

func ipCommands(stdin io.Reader, stderr io.Writer) int {
	text, err := io.ReadAll(stdin)
	if err != nil {
		_, _ = fmt.Fprintln(stderr, err)
		return ipBatch
	}
	number := 0
	for line := range strings.Lines(string(text)) {
		number++
		line, _, _ = strings.Cut(line, "#")
		args := strings.Fields(line)
		if len(args) == 0 {
			continue
		}
		if err := ipRun(args); err != nil {
			_, _ = fmt.Fprintf(stderr, "%v\nCommand failed -:%d\n", err, number)
			return ipBatch
		}
	}
	return 0
}

func ipRun(args []string) error {
	if len(args) < 3 {
		return badUsage("command line is not complete")
	}
	object, verb, args := args[0], args[1], args[2:]
	switch {
	case object != "" && strings.HasPrefix("address", object):
		return ipAddress(verb, args)
	case object != "" && strings.HasPrefix("route", object):
		return ipRoute(verb, args)
	}
	return badUsage("object %q is unknown", object)
}

func ipAddress(verb string, args []string) error {
	p, err := parseIPPrefix(args[0])
	if err != nil {
		return err
	}
	a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
	a.Broadcast = net.IPv4zero // none, as ip(8) does unless told
	if p.Addr().Is6() {
		a.Broadcast = nil
	}
	a.ValidLft, a.PreferedLft = forever, forever
	var link netlink.Link
	words := optionWords{args: args[1:]}
	for words.next() {
		switch words.key {
		case "dev":
			link, err = linkNamed(words.value())
		case "nodad":
			a.Flags |= unix.IFA_F_NODAD
		case "noprefixroute":
			a.Flags |= unix.IFA_F_NOPREFIXROUTE
		case "valid_lft":
			a.ValidLft, err = lifetime(words.value())
		case "preferred_lft":
			a.PreferedLft, err = lifetime(words.value())
		default:
			err = badUsage("Error: either \"local\" is duplicate, or %q is a garbage.", words.key)
		}
		if err = errors.Join(err, words.err); err != nil {
			return err
		}
	}
	if link == nil {
		return badUsage("not enough information: \"dev\" argument is required")
	}
	if a.PreferedLft > a.ValidLft {
		return badUsage("preferred_lft is greater than valid_lft")
	}
	do, ok := map[string]func(netlink.Link, *netlink.Addr) error{
		"add": netlink.AddrAdd, "replace": netlink.AddrReplace, "change": netlink.AddrReplace, "del": delAddress, "delete": delAddress,
	}[verb]
	if !ok {
		return badUsage("command %q is unknown", verb)
	}
	return kernelSays(do(link, a))
}

func delAddress(link netlink.Link, a *netlink.Addr) error {
	a.ValidLft, a.PreferedLft, a.Flags = 0, 0, 0
	return netlink.AddrDel(link, a)
}

func ipRoute(verb string, args []string) error {
	r := &netlink.Route{Protocol: unix.RTPROT_BOOT}
	words := optionWords{args: args[1:]}
	six := strings.Contains(args[0], ":")
	var err error
	for words.next() {
		switch words.key {
		case "via":
			r.Gw, err = parseIP(words.value())
			six = six || len(r.Gw) == net.IPv6len
		case "src":
			r.Src, err = parseIP(words.value())
		case "dev":
			var link netlink.Link
			if link, err = linkNamed(words.value()); err == nil {
				r.LinkIndex = link.Attrs().Index
			}
		case "onlink":
			r.Flags |= int(netlink.FLAG_ONLINK)
		case "metric":
			r.Priority, err = number(words.value(), 1<<31-1)
		case "proto", "protocol":
			var n int
			n, err = number(words.value(), 255)
			r.Protocol = netlink.RouteProtocol(n)
		default:
			err = badUsage("Error: either \"to\" is duplicate, or %q is a garbage.", words.key)
		}
		if err = errors.Join(err, words.err); err != nil {
			return err
		}
	}
	to := args[0]
	switch {
	case to == "default" && six:
		to = "::/0"
	case to == "default":
		to = "0.0.0.0/0"
	}
	p, err := parseIPPrefix(to)
	if err != nil {
		return err
	}
	r.Dst = &net.IPNet{IP: p.Masked().Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
	do, ok := map[string]func(*netlink.Route) error{
		"add": netlink.RouteAdd, "replace": netlink.RouteReplace, "del": delRoute, "delete": delRoute,
	}[verb]
	if !ok {
		return badUsage("command %q is unknown", verb)
	}
	return kernelSays(do(r))
}

func delRoute(r *netlink.Route) error {
	if r.Protocol == unix.RTPROT_BOOT {
		r.Protocol = 0 // any
	}
	return netlink.RouteDel(r)
}

// kernelSays words a refusal as iproute2 does.
func kernelSays(err error) error {
	if err == nil {
		return nil
	}
	var code unix.Errno
	if errors.As(err, &code) {
		return fmt.Errorf("RTNETLINK answers: %s", code)
	}
	return err
}

// optionWords are the words after a command's first argument.
type optionWords struct {
	args []string
	key  string
	err  error
}

func (w *optionWords) next() bool {
	if len(w.args) == 0 {
		return false
	}
	w.key, w.args = w.args[0], w.args[1:]
	return true
}

func (w *optionWords) value() string {
	if len(w.args) == 0 {
		w.err = badUsage("command line is not complete")
		return ""
	}
	v := w.args[0]
	w.args = w.args[1:]
	return v
}

func linkNamed(name string) (netlink.Link, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("cannot find device %q", name)
	}
	return link, nil
}

func parseIPPrefix(text string) (netip.Prefix, error) {
	if p, err := netip.ParsePrefix(text); err == nil {
		return p, nil
	}
	a, err := netip.ParseAddr(text)
	if err != nil || a.Zone() != "" {
		return netip.Prefix{}, badUsage("any valid prefix is expected rather than %q", text)
	}
	return netip.PrefixFrom(a, a.BitLen()), nil
}

func parseIP(text string) (net.IP, error) {
	a, err := netip.ParseAddr(text)
	if err != nil || a.Zone() != "" {
		return nil, badUsage("any valid address is expected rather than %q", text)
	}
	return a.AsSlice(), nil
}

func lifetime(text string) (int, error) {
	if text == "forever" {
		return forever, nil
	}
	n, err := number(strings.TrimSuffix(text, "sec"), forever)
	return n, err
}

func number(text string, most int) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 || n > most {
		return 0, badUsage("argument %q is wrong: want 0 to %d", text, most)
	}
	return n, nil
}
