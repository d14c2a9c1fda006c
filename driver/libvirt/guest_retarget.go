package libvirt

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// Retarget rewrites domain XML and leaves what it does not have to change as it
// is, byte for byte, whether it knows it or not.
//
// A live migration takes the rewritten definition as the destination's
// (VIR_MIGRATE_PARAM_DEST_XML of Prepare, where libvirt parses it and checks that
// the guest cannot tell the difference): the source of a network card, paths and
// metadata may differ there, its MAC, the name and the UUID may not.
func (g *Guests) Retarget(def driver.Definition, to driver.Retarget) (driver.Definition, error) {
	const op = "retarget definition"
	if err := to.Validate(); err != nil {
		return nil, err
	}
	root, err := parseXML(def)
	if err == nil && root.name.Local != "domain" {
		err = fmt.Errorf("definition: it is a <%s>, want a <domain>", root.name.Local)
	}
	if err == nil {
		err = retarget(root, to)
	}
	if err != nil {
		return nil, drover.E(drover.Invalid, op, err)
	}
	return replaceRoot(root), nil
}

func retarget(root *element, to driver.Retarget) error {
	if err := retargetNICs(root, to.NICs); err != nil {
		return err
	}
	if err := retargetPaths(root, to.Paths); err != nil {
		return err
	}
	if err := retargetDisks(root, to.Disks); err != nil {
		return err
	}
	if line := root.at("os", "cmdline"); line != nil && to.Network != nil {
		line.setContent(to.Network.CommandLine(line.content()))
	}
	if to.Clone != nil {
		if err := checkClone(root, to); err != nil {
			return err
		}
		makeClone(root, *to.Clone, to.Paths)
	}
	if to.Probe != nil || to.Clone != nil {
		retargetProbe(root, to.Probe)
	}
	return nil
}

func retargetNICs(root *element, nics []driver.RetargetNIC) error {
	// All are found before any changes, so that two may swap their MACs.
	found := make([]*element, len(nics))
	for i, n := range nics {
		if found[i] = interfaceByMAC(root, n.MAC); found[i] == nil {
			return fmt.Errorf("there is no network card with MAC %s", n.MAC)
		}
	}
	for i, n := range nics {
		nic := found[i]
		if n.Network != "" {
			if err := retargetNetwork(nic, n.Network); err != nil {
				return fmt.Errorf("network card %s: %w", n.MAC, err)
			}
		}
		if n.NewMAC != "" {
			nic.child("mac").setAttr("address", n.NewMAC)
		}
	}
	return nil
}

// retargetNetwork attaches a network card elsewhere, in the way it was.
func retargetNetwork(nic *element, network string) error {
	key, ok := map[string]string{"bridge": "bridge", "network": "network", "direct": "dev"}[nic.attr("type")]
	source := nic.child("source")
	if !ok || source == nil {
		return fmt.Errorf("it is attached to a %q, want a bridge, network or device", nic.attr("type"))
	}
	source.setAttr(key, network)
	if key == "network" { // what libvirt said of the old one
		source.dropAttr("portid")
		source.dropAttr("bridge")
	}
	return nil
}

// pathAttrs are where the elements source and log have paths.
var pathAttrs = []string{"file", "dev", "path"}

// retargetPaths replaces paths wherever a definition has them.
func retargetPaths(root *element, paths map[string]string) error {
	if len(paths) == 0 {
		return nil
	}
	used := map[string]bool{}
	root.at("devices").walkPaths(func(e *element, attr string) {
		old := e.attr(attr)
		path, ok := paths[old]
		if !ok {
			return
		}
		used[old] = true
		e.setAttr(attr, path)
		if disk := e.parent; disk.name.Local == "disk" {
			for _, below := range disk.each("backingStore") {
				below.remove()
			}
		}
	})
	if nvram := root.at("os", "nvram"); nvram != nil {
		holder := nvram.child("source")
		for _, attr := range pathAttrs {
			if path, ok := paths[holder.attr(attr)]; ok && holder != nil {
				used[holder.attr(attr)] = true
				holder.setAttr(attr, path)
			}
		}
		if path, ok := paths[nvram.content()]; ok && holder == nil {
			used[nvram.content()] = true
			nvram.setContent(path)
		}
	}
	for _, path := range slices.Sorted(maps.Keys(paths)) {
		if !used[path] {
			return fmt.Errorf("no disk, firmware or console is at %s", path)
		}
	}
	return nil
}

// walkPaths calls f for each attribute that may hold a path of a device's own.
// Those of backing images are not: the images name them.
func (e *element) walkPaths(f func(e *element, attr string)) {
	if e == nil {
		return
	}
	for _, device := range e.children {
		switch device.name.Local {
		case "disk", "serial", "console", "parallel", "channel":
			for _, c := range device.children {
				if c.name.Local != "source" && c.name.Local != "log" {
					continue
				}
				for _, attr := range pathAttrs {
					if c.attr(attr) != "" {
						f(c, attr)
					}
				}
			}
		}
	}
}

// checkClone makes sure that clone and original share nothing that only one of
// them may have.
func checkClone(root *element, to driver.Retarget) error {
	fresh := map[string]bool{}
	for _, n := range to.NICs {
		if n.NewMAC != "" {
			fresh[strings.ToLower(n.NewMAC)] = true
		}
	}
	for _, nic := range root.at("devices").each("interface") {
		if mac := nic.child("mac").attr("address"); mac != "" && !fresh[strings.ToLower(mac)] {
			return fmt.Errorf("a clone's network card %s needs a MAC of its own", mac)
		}
	}
	moved := map[string]bool{}
	for _, path := range to.Paths {
		moved[path] = true
	}
	for _, disk := range root.at("devices").each("disk") {
		source := disk.child("source")
		device := disk.attr("device")
		if source == nil || device == "cdrom" || device == "floppy" || disk.child("readonly") != nil || disk.child("shareable") != nil {
			continue
		}
		path := source.attr("file") + source.attr("dev")
		if path == "" {
			return fmt.Errorf("disk %s is no file of the host's: a clone would write to its original's", disk.child("target").attr("dev"))
		}
		if !moved[path] {
			return fmt.Errorf("a clone's disk %s needs another path than %s", disk.child("target").attr("dev"), path)
		}
	}
	nvram := root.at("os", "nvram")
	if path := nvram.content() + nvram.child("source").attr("file"); path != "" && !moved[path] {
		return fmt.Errorf("a clone's firmware variables need another path than %s", path)
	}
	return nil
}

// makeClone gives a definition an identity of its own. What libvirt makes up by
// itself where it is missing is left out.
func makeClone(root *element, clone driver.RetargetClone, paths map[string]string) {
	if name := root.child("name"); name != nil {
		name.setContent(clone.Name)
	} else {
		root.add("<name>" + escapeXML(clone.Name) + "</name>")
	}
	if id := root.child("uuid"); id != nil {
		id.setContent(clone.UUID)
	} else {
		root.add("<uuid>" + clone.UUID + "</uuid>")
	}
	for _, info := range root.each("sysinfo") {
		for _, entry := range info.child("system").each("entry") {
			if entry.attr("name") == "uuid" { // libvirt wants it to be the VM's
				entry.setContent(clone.UUID)
			}
		}
	}
	if id := root.child("genid"); id != nil {
		id.setContent("") // libvirt makes one: the guest learns that it is a copy
	}
	given := map[string]bool{}
	for _, path := range paths {
		given[path] = true
	}
	devices := root.child("devices")
	for _, nic := range devices.each("interface") {
		for _, target := range nic.each("target") {
			target.remove() // its name on the host
		}
	}
	for _, channel := range devices.each("channel") {
		source := channel.child("source")
		if channel.attr("type") == "unix" && source.attr("mode") == "bind" && !given[source.attr("path")] {
			source.remove()
		}
	}
}

// retargetProbe replaces Drover's word of where clients see the VM answer; nil
// takes it away.
func retargetProbe(root *element, probe *drover.ProbeTarget) {
	markup := func(prefix string) string {
		if probe == nil {
			return ""
		}
		text := "<" + prefix + "probe"
		for _, a := range []struct{ name, value string }{{"tcp", probe.TCP}, {"kind", probe.Kind}, {"http", probe.HTTP}} {
			if a.value != "" {
				text += " " + a.name + "='" + escapeXML(a.value) + "'"
			}
		}
		return text + "/>"
	}
	metadata := root.child("metadata")
	if vm, prefix := droverElement(metadata); vm != nil {
		for _, old := range vm.each("probe") {
			old.remove()
		}
		vm.add(markup(prefix))
		return
	}
	if probe == nil {
		return
	}
	own := fmt.Sprintf("<drover:vm xmlns:drover='%s'>%s</drover:vm>", Namespace, markup("drover:"))
	if metadata != nil {
		metadata.add(own)
		return
	}
	root.add("<metadata>" + own + "</metadata>")
}

// droverElement finds Drover's element in the metadata and the prefix that its
// children have.
func droverElement(metadata *element) (vm *element, prefix string) {
	for _, e := range metadata.each("vm") {
		for _, a := range e.attrs {
			plain := e.name.Space == "" && a.Name.Space == "" && a.Name.Local == "xmlns"
			named := e.name.Space != "" && a.Name.Space == "xmlns" && a.Name.Local == e.name.Space
			if (plain || named) && a.Value == Namespace {
				if e.name.Space != "" {
					prefix = e.name.Space + ":"
				}
				return e, prefix
			}
		}
	}
	return nil, ""
}
