package leak

import (
	"fmt"
	"os"
	"strings"
)

// descriptors returns the open descriptors with what they refer to.
func descriptors() map[string]string {
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	found := make(map[string]string)
	own := fmt.Sprintf("/proc/%d/fd", os.Getpid())
	for _, entry := range entries {
		// A descriptor that is gone by now, as the one that read the
		// directory, has no link any more.
		link, err := os.Readlink(dir + "/" + entry.Name())
		if err != nil || strings.HasPrefix(link, own) {
			continue
		}
		text := "descriptor " + entry.Name() + " -> " + link
		found[text] = text
	}
	return found
}
