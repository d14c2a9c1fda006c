package dhcp

import (
	"github.com/drover-vm/drover"
)

func libvirtKind(err error) drover.Kind { return drover.Internal }
