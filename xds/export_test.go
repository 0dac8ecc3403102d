package xds

// Callers is how many callers a client keeps.
func Callers(x *Client) int { return x.size() }
