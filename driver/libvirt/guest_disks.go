package libvirt

import (
	"fmt"
	"time"

	"github.com/drover-vm/drover/driver"
)

// retargetDisks changes where disks are. What the guest sees of them (its bus, its
// address, its serial number) stays, and so does what the definition says of
// caching and errors.
func retargetDisks(root *element, disks []driver.RetargetDisk) error {
	for _, d := range disks {
		disk := diskByTarget(root, d.Target)
		if disk == nil {
			return fmt.Errorf("there is no disk %s", d.Target)
		}
		if err := retargetDisk(disk, d); err != nil {
			return fmt.Errorf("disk %s: %w", d.Target, err)
		}
	}
	return nil
}

func diskByTarget(root *element, target string) *element {
	for _, disk := range root.at("devices").each("disk") {
		if disk.child("target").attr("dev") == target {
			return disk
		}
	}
	return nil
}

// retargetDisk rewrites one. An element that would mean another thing at the new
// place, such as a key for its encryption, is refused.
func retargetDisk(disk *element, d driver.RetargetDisk) error {
	source := disk.child("source")
	if source == nil {
		return fmt.Errorf("it has no medium")
	}
	for _, name := range []string{"encryption", "slices", "reservations"} {
		if source.child(name) != nil || disk.child(name) != nil {
			return fmt.Errorf("it has <%s>, which cannot be taken along", name)
		}
	}
	kind, format := "file", d.Format
	text := fmt.Sprintf("<source file='%s'/>", escapeXML(d.Path))
	if d.Socket != "" {
		kind, format = "network", "raw"
		text = fmt.Sprintf("<source protocol='nbd' name='%s'><host transport='unix' socket='%s'/><reconnect delay='%d'/></source>",
			escapeXML(d.Target), escapeXML(d.Socket), int64(driver.RemoteDiskWait/time.Second))
	}
	if disk.attr("type") == kind && sourceIs(source, d) && disk.child("driver").attr("type") == format {
		return nil
	}
	disk.setAttr("type", kind)
	source.remove()
	for _, name := range []string{"backingStore", "mirror"} {
		for _, e := range disk.each(name) {
			e.remove()
		}
	}
	if drv := disk.child("driver"); drv != nil {
		drv.setAttr("type", format)
		drv.dropAttr("io") // native and io_uring are for files
	} else {
		text = fmt.Sprintf("<driver name='qemu' type='%s'/>", format) + text
	}
	disk.add(text)
	return nil
}

// sourceIs reports whether a source says already what it shall.
func sourceIs(source *element, d driver.RetargetDisk) bool {
	if d.Socket != "" {
		return source.child("host").attr("socket") == d.Socket && source.child("reconnect") != nil
	}
	return source.attr("file") == d.Path
}
