package lab

import (
	"context"
	"encoding/xml"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/digitalocean/go-libvirt"
	"github.com/digitalocean/go-libvirt/socket/dialers"
	"golang.org/x/sync/errgroup"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/lab/labfile"
	"github.com/drover-vm/drover/lab/node"
	"github.com/drover-vm/drover/lab/topology"
)

// metadataURI is the name space of what Drover keeps in a VM's definition.
const metadataURI = "https://drover-vm.org/libvirt/1"

// tcgCPU is a model without features that an emulated processor lacks; a guest
// that has it moves between any two hosts that emulate.
const tcgCPU = "qemu64"

// Limits for guests.
const (
	// libvirtTimeout bounds the connection to a libvirtd.
	libvirtTimeout = 5 * time.Second
	// guestParallel bounds how many guests boot at once: emulated processors
	// share the machine's few real ones.
	guestParallel = 4
	// healthLimit is how long a guest may take until its probe answers: a Debian
	// guest with databases boots in 20 s alone under emulation, several slower.
	healthLimit    = 3 * time.Minute
	healthInterval = 250 * time.Millisecond
	healthTimeout  = 2 * time.Second
)

// Libvirt connects to the libvirtd of a host. The caller disconnects.
func (l *Lab) Libvirt(host string) (*libvirt.Libvirt, error) {
	n, err := l.Node(host)
	if err != nil {
		return nil, err
	}
	if n.Role != topology.Host {
		return nil, drover.Errorf(drover.Invalid, "node "+host, "is a %s, want a host", n.Role)
	}
	c := libvirt.NewWithDialer(dialers.NewLocal(
		dialers.WithSocket(filepath.Join(n.Dir, libvirtSock)), dialers.WithLocalTimeout(libvirtTimeout)))
	if err := c.ConnectToURI(libvirt.QEMUSystem); err != nil {
		return nil, drover.Errorf(drover.Unavailable, "libvirtd of "+host, "does not answer: %w", err)
	}
	return c, nil
}

// startGuests makes the guests' disks, defines them and starts those that start.
func (l *Lab) startGuests(ctx context.Context, f *labfile.File, images map[string]image) error {
	cache := "writeback"
	if directIO(l.Dir) {
		cache = "none"
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(guestParallel)
	for i := range f.Guests {
		g.Go(func() error {
			spec := &f.Guests[i]
			img := images[spec.Image]
			if err := l.startGuest(ctx, f, spec, &img, cache); err != nil {
				return fmt.Errorf("guest %s: %w", spec.Name, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil || len(f.Guests) == 0 {
		return err
	}
	if err := l.keepCapabilities(f.Guests[0].Host); err != nil {
		// It would only have saved time.
		l.opt.Log.Warn("cannot keep what libvirt learnt of QEMU", "err", err)
	}
	return nil
}

func (l *Lab) startGuest(ctx context.Context, f *labfile.File, g *labfile.Guest, img *image, cache string) error {
	conn, err := l.Libvirt(g.Host)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Disconnect() }() // nothing depends on a clean goodbye
	disk, err := l.makeDisk(ctx, conn, g, img)
	if err != nil {
		return fmt.Errorf("make disk: %w", err)
	}
	def, err := l.domain(f, g, img, disk, cache)
	if err != nil {
		return err
	}
	dom, err := conn.DomainDefineXMLFlags(def, libvirt.DomainDefineValidate)
	if err != nil {
		return fmt.Errorf("define: %w", err)
	}
	if !g.Starts() {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err := conn.DomainCreate(dom); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	l.opt.Log.Info("guest started", "guest", g.Name, "host", g.Host, "address", g.Address)
	return nil
}

// makeDisk makes a guest's disk among its host's volumes and returns its path
// there; "" for a guest without one. It runs inside the host, where images have
// the names that backing files refer to.
func (l *Lab) makeDisk(ctx context.Context, conn *libvirt.Libvirt, g *labfile.Guest, img *image) (string, error) {
	if g.Disk.Size == 0 {
		return "", nil
	}
	path, size := filepath.Join(volumesDir, g.Name+".qcow2"), fmt.Sprint(int64(g.Disk.Size))
	create := []string{"qemu-img", "create", "-q", "-f", "qcow2", "--", path, size}
	steps := [][]string{create}
	switch {
	case len(img.layers) == 0:
	case g.Disk.Copy:
		steps = [][]string{
			{"qemu-img", "convert", "-f", img.layers[0].format, "-O", "qcow2", "--", img.layerPath(0), path},
			{"qemu-img", "resize", "-q", "-f", "qcow2", "--", path, size},
		}
	default:
		steps[0] = slices.Insert(create, 5, "-b", img.layerPath(0), "-F", img.layers[0].format)
	}
	for _, args := range steps {
		cmd, err := l.Command(ctx, g.Host, args...)
		if err != nil {
			return "", err
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("%s %s: %w: %s", args[0], args[1], err, strings.TrimSpace(string(out)))
		}
	}
	pool, err := conn.StoragePoolLookupByName(poolName)
	if err != nil {
		// Guests do not need it: libvirt's storage driver is a package of its own.
		l.opt.Log.Warn("the host has no storage pool, is libvirt-daemon-driver-storage installed?", "host", g.Host, "err", err)
		return path, nil
	}
	return path, conn.StoragePoolRefresh(pool, 0)
}

// diskSizes gives guests whose file names no size that of their image's disk.
func diskSizes(f *labfile.File, images map[string]image) labfile.Problems {
	var ps labfile.Problems
	for i := range f.Guests {
		g := &f.Guests[i]
		img := images[g.Image]
		if len(img.layers) == 0 {
			continue
		}
		least := img.layers[0].bytes
		if g.Disk.Size == 0 {
			g.Disk.Size = labfile.Size(least)
		}
		if drover.Bytes(g.Disk.Size) < least {
			ps = append(ps, f.Problem(fmt.Sprintf("guests[%d].disk.size", i), drover.Bytes(g.Disk.Size).String(),
				fmt.Sprintf("smaller than the image's disk, want at least %s", least)))
		}
	}
	return ps
}

// metadata is Drover's part of a VM's definition.
type metadata struct {
	XMLName xml.Name        `xml:"drover:vm"`
	NS      string          `xml:"xmlns:drover,attr"`
	Probe   *metadataProbe  `xml:"drover:probe,omitempty"`
	Labels  []metadataLabel `xml:"drover:label"`
	// Requirements are what it needs, as the file has them.
	Requirements []metadataLabel `xml:"drover:requirement"`
}

type metadataProbe struct {
	TCP  string `xml:"tcp,attr,omitempty"`
	Kind string `xml:"kind,attr,omitempty"`
	HTTP string `xml:"http,attr,omitempty"`
}

type metadataLabel struct {
	Name  string `xml:"name,attr"`
	Value string `xml:"value,attr"`
}

// waitGuests waits until the probes of the started guests answer, as seen from a
// client or, without one, from the edge that is the segment's gateway.
func (l *Lab) waitGuests(ctx context.Context, f *labfile.File) error {
	g, ctx := errgroup.WithContext(ctx)
	for i := range f.Guests {
		spec := &f.Guests[i]
		if !spec.Starts() || spec.Probe == nil {
			continue
		}
		from := labfile.EdgeName(f.Segment(spec.Segment).Sites[0])
		if len(f.Clients) > 0 {
			from = f.Clients[0].Name
		}
		g.Go(func() error {
			err := poll(ctx, healthInterval, healthLimit, func(ctx context.Context) error {
				ctx, cancel := context.WithTimeout(ctx, healthTimeout)
				defer cancel()
				return l.answers(ctx, from, spec.Probe)
			})
			if err != nil {
				tail := lastLine(filepath.Join(node.Dir(l.Dir, spec.Host), "log-libvirt", strings.TrimPrefix(consoleLog(spec.Name), libvirtLogs)))
				return fmt.Errorf("guest %s does not answer at %s: %w; its console ends with: %s", spec.Name, from, err, tail)
			}
			l.opt.Log.Info("guest answers", "guest", spec.Name, "from", from)
			return nil
		})
	}
	return g.Wait()
}

// answers asks a probe's targets once, from a node.
func (l *Lab) answers(ctx context.Context, from string, p *labfile.Probe) error {
	if p.TCP != "" {
		conn, err := l.Dial(ctx, from, "tcp", p.TCP)
		if err != nil {
			return err
		}
		if err := conn.Close(); err != nil {
			return err
		}
	}
	if p.HTTP == "" {
		return nil
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.HTTP, nil)
	if err != nil {
		return err
	}
	client := http.Client{Transport: l.Transport(from)}
	defer client.CloseIdleConnections()
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("%s: %s", p.HTTP, resp.Status)
	}
	return nil
}

// domainState names libvirt's states (virDomainState) as Drover does.
func domainState(s int32) drover.VMState {
	switch libvirt.DomainState(s) {
	case libvirt.DomainRunning, libvirt.DomainBlocked, libvirt.DomainShutdown:
		return drover.VMRunning
	case libvirt.DomainPaused, libvirt.DomainPmsuspended:
		return drover.VMPaused
	case libvirt.DomainCrashed:
		return drover.VMCrashed
	default:
		return drover.VMOff
	}
}
