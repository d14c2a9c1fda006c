package agent

import (
	"context"
	"fmt"
	"strings"

	"github.com/drover-vm/drover"
)

// warmChecks say whether what the VM writes can be recorded while it runs.
func (a *Agent) warmChecks(ctx context.Context, vm drover.VM) ([]drover.Check, error) {
	checks, err := a.hyp.CheckBackup(ctx, vm.Name)
	if err != nil {
		return nil, err
	}
	formats := drover.Check{Name: "disk-records", OK: true, Detail: "its disks can record what changes"}
	var faults []string
	for _, d := range vm.Disks {
		if d.Shared || d.ReadOnly {
			continue
		}
		if _, err := a.volumes.Bitmaps(ctx, d.Path); err != nil {
			faults = append(faults, fmt.Sprintf("%s: %v", d.Target, err))
		}
	}
	if len(faults) > 0 {
		formats.OK, formats.Detail = false, strings.Join(faults, "; ")
		formats.Fix = "move it cold, or live; or, with the VM off, make the images such as can record changes (qcow2, compat=1.1)"
	}
	return append(checks, formats), nil
}
