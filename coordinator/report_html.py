def page(r): return "<html></html>"
