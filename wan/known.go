package wan

import (
	"context"
	"sync"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/wan/chunk"
)

// maxOffered bounds how many sources a destination offers for one move: its
// own VM's, the images below it, and the latest of its tenant. Each costs a
// line in the control call and, at the source, the reading of a catalogue.
const maxOffered = 64

// maxAskedBlocks bounds the sources whose catalogue is asked for: 16 GiB, of
// which the fingerprints are at most 32 MiB, 0.2 % of what they may spare.
const maxAskedBlocks = 4 << 20

// Subject is whose content a move carries; it decides what may be referred to.
type Subject struct {
	// Move and VM (its UUID) name what becomes of this move's memory.
	Move, VM string
	// Tenant is the scope: VMs of one tenant may share what they sent. VMs
	// without a tenant share the empty one.
	Tenant string
}

// Source is content that a destination holds and a sender may refer to.
type Source struct {
	ID     [32]byte
	Kind   uint8
	Blocks int64 // of 4 KiB
}

// Offer returns what this node holds that the subject's sender may refer to,
// the likeliest first. The order is part of the session: the sender and
// Receive must be given the same list.
func (n *Node) Offer(s Subject) []Source {
	if n.library == nil {
		return nil
	}
	all := n.library.Sources(s.Tenant, s.VM)
	out := make([]Source, 0, min(len(all), maxOffered))
	for _, src := range all[:min(len(all), maxOffered)] {
		out = append(out, Source{ID: src.ID, Kind: uint8(src.Kind), Blocks: src.Blocks})
	}
	return out
}

// checkOffer refuses a list that a sender could not refer to.
func checkOffer(offered []Source) error {
	const op = "offered sources"
	if len(offered) > maxOffered {
		return drover.Errorf(drover.Invalid, op, "%d sources, want at most %d", len(offered), maxOffered)
	}
	for i, s := range offered {
		if s.Blocks < 0 || s.Blocks > chunk.MaxBlocks {
			return drover.Errorf(drover.Invalid, op, "source %d has %d blocks", i, s.Blocks)
		}
	}
	return nil
}

// asker gets the fingerprints of an offered source from the destination.
type asker func(ctx context.Context, source uint16, take func(first int64, fps []chunk.Fingerprint)) error

// learn fills the index with what the offered sources hold, in their order:
// from the catalogues that are here, which for content that is here too may
// have to be made first, and for the others that are small and likely, from the
// destination's own. It ends early with ctx.
func (n *Node) learn(ctx context.Context, index *chunk.Index, offered []Source, ask asker) {
	var later []uint16
	for i, s := range offered {
		src := uint16(i)
		switch {
		case n.learnOne(ctx, index, src, s):
		case n.library != nil && n.library.Has(s.ID):
			later = append(later, src)
		case chunk.SourceKind(s.Kind) == chunk.KindImage || s.Blocks > maxAskedBlocks:
			// An image that nobody here runs on has little of this VM.
		default:
			err := ask(ctx, src, func(first int64, fps []chunk.Fingerprint) {
				for j, fp := range fps {
					index.Add(fp, chunk.Ref{Source: src, Block: uint32(first + int64(j))})
				}
			})
			if err != nil && ctx.Err() == nil {
				n.log.Debug("no catalogue of an offered source", "source", chunk.SourceID(s.ID).String(), "err", err)
			}
		}
	}
	for _, src := range later {
		if n.library.WaitIndexed(ctx, offered[src].ID) == nil {
			n.learnOne(ctx, index, src, offered[src])
		}
	}
}

// learnOne takes a source's catalogue, if it is here.
func (n *Node) learnOne(ctx context.Context, index *chunk.Index, number uint16, s Source) bool {
	if n.library == nil {
		return false
	}
	c, err := n.library.Catalogue(s.ID)
	return err == nil && c.Blocks() == s.Blocks && index.AddCatalogue(ctx, number, c) == nil
}

// baseOf returns the first offered memory that is here too, which is the
// newest of the VM itself if there is one: what the mirrors can begin on.
func (n *Node) baseOf(offered []Source, vm string) (number uint16, id chunk.SourceID) {
	for i, s := range offered {
		if chunk.SourceKind(s.Kind) == chunk.KindMemory && n.library.Has(s.ID) && n.library.InScope(s.ID, noScope, vm) {
			return uint16(i), s.ID
		}
	}
	return 0, chunk.SourceID{}
}

// noScope is no tenant's: with it, only what is the VM's own is in scope.
const noScope = "\x00"

// contents opens offered sources when they are first read.
type contents struct {
	library *chunk.Library
	offered []Source

	mu   sync.Mutex
	open []chunk.Content
	dead []bool // could not be opened: every reference to it is a miss
}

func newContents(l *chunk.Library, offered []Source) *contents {
	return &contents{library: l, offered: offered, open: make([]chunk.Content, len(offered)), dead: make([]bool, len(offered))}
}

// get returns an offered source's content. A source that cannot be opened
// gives drover.NotFound from then on.
func (c *contents) get(i int) (chunk.Content, error) {
	const op = "read offered source"
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case i < 0 || i >= len(c.offered):
		return nil, drover.Errorf(drover.Invalid, op, "number %d, %d were offered", i, len(c.offered))
	case c.dead[i]:
		return nil, drover.Errorf(drover.NotFound, op, "number %d could not be opened", i)
	case c.open[i] != nil:
		return c.open[i], nil
	}
	content, err := c.library.Open(c.offered[i].ID)
	if err != nil {
		c.dead[i] = true
		return nil, err
	}
	c.open[i] = content
	return content, nil
}

func (c *contents) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, content := range c.open {
		if content != nil {
			_ = content.Close()
		}
		c.open[i], c.dead[i] = nil, true
	}
}

// ReadBlocks reads an offered source; it implements reduce.Resolver.
func (c *contents) ReadBlocks(source uint16, block int64, p []byte) error {
	content, err := c.get(int(source))
	if err != nil {
		return err
	}
	return content.ReadBlocks(block, p)
}
