package libvirt

import (
	"context"
	"io"
	"log/slog"
	"strings"
	"sync"

	golibvirt "github.com/digitalocean/go-libvirt"
	"github.com/google/uuid"
	"libvirt.org/go/libvirtxml"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// DefaultSocket is where libvirtd listens on a Debian host.
const DefaultSocket = "/run/libvirt/libvirt-sock"

// Hypervisor is a host's libvirtd, reached over its unix socket. Beside one
// long-lived connection for calls, each Watch, Outgoing and Incoming has one
// of its own.
type Hypervisor struct {
	log    *slog.Logger
	socket string
	// dialing holds one token: whoever has it may replace shared.
	dialing chan struct{}

	mu     sync.Mutex // guards what follows
	shared *conn
	conns  map[*conn]struct{}
	closed bool
	// migrations are the open halves by VM, for Settle to close.
	migrations map[string]io.Closer
}

var _ driver.Hypervisor = (*Hypervisor)(nil)

// New returns the hypervisor whose manager listens at socket (empty:
// DefaultSocket). It connects on the first call and again whenever the
// manager has gone away, so that New itself cannot fail.
func New(log *slog.Logger, socket string) *Hypervisor {
	if socket == "" {
		socket = DefaultSocket
	}
	return &Hypervisor{
		log:     log,
		socket:  socket,
		dialing: make(chan struct{}, 1),
		conns:   map[*conn]struct{}{},

		migrations: map[string]io.Closer{},
	}
}

// Close drops every connection: running calls end with drover.Canceled or
// drover.Unavailable, watches end, and a migration is left as a dying client
// leaves it. No VM is stopped.
func (h *Hypervisor) Close() error {
	h.mu.Lock()
	h.closed = true
	conns := make([]*conn, 0, len(h.conns))
	for c := range h.conns {
		conns = append(conns, c)
	}
	clear(h.conns)
	h.shared = nil
	h.mu.Unlock()
	for _, c := range conns {
		c.drop()
	}
	for _, c := range conns {
		c.wait()
	}
	return nil
}

// Definition returns the persistent configuration with its secrets, in the
// form that libvirt offers to other hosts.
func (h *Hypervisor) Definition(ctx context.Context, name string) (driver.Definition, error) {
	return askDomain(ctx, h, "read definition of", name, func(rpc *golibvirt.Libvirt, dom golibvirt.Domain) (driver.Definition, error) {
		text, err := rpc.DomainGetXMLDesc(dom, golibvirt.DomainXMLInactive|golibvirt.DomainXMLSecure|golibvirt.DomainXMLMigratable)
		return driver.Definition(text), err
	})
}

// Define makes def known. Libvirt checks it; what it does not accept is
// drover.Invalid.
func (h *Hypervisor) Define(ctx context.Context, def driver.Definition) (string, error) {
	want, err := parseDomain(string(def))
	if err != nil {
		return "", drover.E(drover.Invalid, "define vm", err)
	}
	return ask(ctx, h, "define "+want.Name, func(rpc *golibvirt.Libvirt) (string, error) {
		dom, err := rpc.DomainDefineXMLFlags(string(def), 0)
		if err == nil {
			return dom.Name, nil
		}
		if clash := taken(rpc, want); clash != nil {
			return "", clash
		}
		return "", err
	})
}

// Undefine forgets the configuration together with libvirt's own data about
// the VM (managed save, snapshot and checkpoint metadata), since each of them
// would make libvirt refuse. NVRAM and TPM state are the VM's and stay.
func (h *Hypervisor) Undefine(ctx context.Context, name string) error {
	err := h.onDomain(ctx, "undefine", name, func(rpc *golibvirt.Libvirt, dom golibvirt.Domain) error {
		active, err := rpc.DomainIsActive(dom)
		if err != nil {
			return err
		}
		if active != 0 {
			return drover.Errorf(drover.Refused, "", "it is running; shut it down first")
		}
		return undefine(rpc, dom)
	})
	if notFound(err) {
		return nil
	}
	return err
}

func undefine(rpc *golibvirt.Libvirt, dom golibvirt.Domain) error {
	flags := golibvirt.DomainUndefineManagedSave | golibvirt.DomainUndefineSnapshotsMetadata |
		golibvirt.DomainUndefineCheckpointsMetadata | golibvirt.DomainUndefineKeepNvram
	text, err := rpc.DomainGetXMLDesc(dom, golibvirt.DomainXMLInactive)
	if err != nil {
		return err
	}
	// Libvirt 11.3 passes the flag on to where snapshots are counted and it is
	// not known, so it is given only where it means something.
	if strings.Contains(text, "<tpm ") {
		flags |= golibvirt.DomainUndefineKeepTpm
	}
	return rpc.DomainUndefineFlags(dom, flags)
}

// Start boots the VM.
func (h *Hypervisor) Start(ctx context.Context, name string) error {
	return h.onDomain(ctx, "start", name, start)
}

func start(rpc *golibvirt.Libvirt, dom golibvirt.Domain) error {
	_, err := rpc.DomainCreateWithFlags(dom, 0)
	if hasCode(err, golibvirt.ErrOperationInvalid) {
		if active, stateErr := rpc.DomainIsActive(dom); stateErr == nil && active != 0 {
			return nil
		}
	}
	return err
}

// Shutdown presses the ACPI power button.
func (h *Hypervisor) Shutdown(ctx context.Context, name string) error {
	return h.onDomain(ctx, "shut down", name, func(rpc *golibvirt.Libvirt, dom golibvirt.Domain) error {
		err := rpc.DomainShutdownFlags(dom, golibvirt.DomainShutdownAcpiPowerBtn)
		if hasCode(err, golibvirt.ErrOperationInvalid) {
			if active, stateErr := rpc.DomainIsActive(dom); stateErr == nil && active == 0 {
				return nil
			}
		}
		return err
	})
}

// Destroy kills QEMU.
func (h *Hypervisor) Destroy(ctx context.Context, name string) error {
	err := h.onDomain(ctx, "destroy", name, destroy)
	if notFound(err) {
		return nil
	}
	return err
}

func destroy(rpc *golibvirt.Libvirt, dom golibvirt.Domain) error {
	err := rpc.DomainDestroyFlags(dom, golibvirt.DomainDestroyDefault)
	if hasCode(err, golibvirt.ErrOperationInvalid) {
		if active, stateErr := rpc.DomainIsActive(dom); stateErr == nil && active == 0 {
			return nil
		}
	}
	return err
}

// taken returns drover.Exists when the name or the UUID of want belongs to
// another VM.
func taken(rpc *golibvirt.Libvirt, want *libvirtxml.Domain) error {
	dom, err := rpc.DomainLookupByName(want.Name)
	if err == nil && !strings.EqualFold(formatUUID(dom.UUID), want.UUID) {
		return drover.Errorf(drover.Exists, "", "a vm of that name has UUID %s", formatUUID(dom.UUID))
	}
	id, err := parseUUID(want.UUID)
	if err != nil {
		return nil
	}
	dom, err = rpc.DomainLookupByUUID(id)
	if err == nil && dom.Name != want.Name {
		return drover.Errorf(drover.Exists, "", "vm %s has the same UUID", dom.Name)
	}
	return nil
}

func formatUUID(id golibvirt.UUID) string { return uuid.UUID(id).String() }

func parseUUID(text string) (golibvirt.UUID, error) {
	id, err := uuid.Parse(text)
	return golibvirt.UUID(id), err
}

// register makes an open half of a migration known to Settle.
func (h *Hypervisor) register(name string, half io.Closer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.migrations[name] = half
}

func (h *Hypervisor) deregister(name string, half io.Closer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.migrations[name] == half {
		delete(h.migrations, name)
	}
}
