// Package reduce turns blocks of guests' memory and disks into batches that carry only what the other end
// does not have, and back.
package reduce
