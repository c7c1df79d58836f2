package site

import (
	"fmt"
	"net/http"
	"time"
)

const maxSleep = 10 * time.Minute

// sleep answers after the time that is asked for, or not at all if the client
// leaves before.
func (s *site) sleep(w http.ResponseWriter, r *http.Request) {
	text := r.URL.Query().Get("for")
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 || d > maxSleep {
		plain(w, http.StatusBadRequest, fmt.Sprintf(
			"for=%q is not a time between 0 and %v. Ask for one like /sleep?for=2s or /sleep?for=150ms\n", text, maxSleep))
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		plain(w, http.StatusOK, fmt.Sprintf("slept %v\n", d))
	case <-r.Context().Done():
	}
}
