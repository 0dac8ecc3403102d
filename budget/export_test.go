package budget

import "time"

// Hurry makes heartbeats come as often as a test needs.
func (v *Valkey) Hurry(every time.Duration) { v.every, v.retry = every, min(every, v.retry) }

// Sidecars returns how many sidecars serve the org, as the control plane has last said.
func (v *Valkey) Sidecars(org string) int {
	o, err := v.org(org)
	if err != nil {
		return 0
	}
	return o.sidecars()
}
